"""``mno bench serve``: the service beside other servers, with the same models, the same bytes, the same load."""
