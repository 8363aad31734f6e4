"""A steered model behind HTTP: the OpenAI API with steering per request, and a playground page."""
