"""Judging synthetic volumes: features of images, and the scores that are made from them."""
