"""stub"""
def inference_methods(inference, repository, health): return []
