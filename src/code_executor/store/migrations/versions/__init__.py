"""One script per change of the schema, each naming the one before it.

A change comes as a new script here and the same change in ``store.schema``; a test compares the
two. A script that has been released is never edited.
"""
