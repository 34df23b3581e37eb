def attention_decode(): pass
