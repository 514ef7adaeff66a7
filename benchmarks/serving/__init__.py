"""``mno bench serve``: the service beside other servers: the same models, bytes and load."""
