"""fnat: a FullNAT layer-4 load balancer. Python decides, C carries."""

__version__ = "0.1.0"
