"""A page on this machine to look at volumes: what there is to see, a server that gives out nothing else, the page itself."""
