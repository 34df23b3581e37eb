def attention_bwd(): pass
