"""Text: tokenizer, prompt weights, text encoder, embeddings of textual inversion."""
