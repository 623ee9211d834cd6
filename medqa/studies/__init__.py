"""Work that draws a conclusion from many assessments."""
