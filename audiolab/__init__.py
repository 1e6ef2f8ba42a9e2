"Train, watch, resume, measure and use small audio models."
__version__ = "0.1.0"
