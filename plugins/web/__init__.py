"""The web service: images come in by HTTP, records go out, a queue in between.

A request becomes a `medqa.Job` in the queue of the audit database, which workers do; the service
itself decodes no image and loads no network. `medqa_plugins.web.app.create_app` makes it.
"""
