"""The PyTorch reference path: what the package computes, once more and by other means.

Four short files, each readable in one sitting, that share no code with the package. They import
torch, numpy, json and safetensors, and none of mlx_steer, mlx or transformers, so an error in
one of those cannot hide itself here.

- ``weights.py``: a model folder to plain tensors; MLX-quantised weights are dequantised.
- ``interventions.py``: what steering, ablation, clamping and gates do to a hidden state.
- ``decoder.py``: a Llama, Mistral, Qwen2 or Qwen3 decoder; greedy continuation; mean difference.
- ``vectors.py``: a vectors folder, read and written with numpy and json.

Everything is slow on purpose: no cache, no padding, no early stop, one sequence at a time.
"""
