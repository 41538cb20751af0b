"""What is looked at while training: sample images and the validation loss."""
