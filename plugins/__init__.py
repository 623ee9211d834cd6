"""Hosts of medqa, imported as `medqa_plugins`.

A plugin turns an event of its host into a `medqa.Job`, calls `medqa.run(job, store=...)`, and turns
the `medqa.Assessment` into the host's reply. Plugins never import each other.
"""
