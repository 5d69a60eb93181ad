"""What a run found: the typed report; its tables, pictures, page and model card are in modules beside.

``rows`` is what producers fill, ``build`` makes the report's entries of it, ``schema`` is the report.
"""
