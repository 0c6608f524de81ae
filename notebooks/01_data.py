# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Four boxes of points
#
# These notebooks build a **Bayesian neural network**. Instead of training one network they keep
# thousands, drawn so that a network turns up the more often, the better it fits both the data
# and what was believed before. Where these networks disagree, the model does not know. The
# whole story needs a problem that is small enough to see. This notebook makes it: 80 points on
# a plane, in two classes.
#
# You will see
# - the data set and why no straight line solves it,
# - how the data say in which precision and on which device everything later is computed,
# - what happens to bad data.
#
# Words in bold are in the [glossary](glossary.md).
#
# This is notebook 1 of 16, and takes some 3 s on two cores. After it comes [2. One network,
# one vector](02_model.ipynb).

# %%
import torch

from bnn_utils import Data, boxes, default_device, plots
from bnn_utils.tutorial import BOX_CORNERS, BOX_SIDE

# %% [markdown]
# ## The data
# Each of the four boxes gets its share of points at random. Boxes that lie diagonally opposite
# share a class. The seed makes the same points on every machine.

# %%
data = boxes(n=80, seed=1234)

for left, bottom in BOX_CORNERS:
    corner = data.x.new_tensor([left, bottom])
    inside = ((data.x >= corner) & (data.x <= corner + BOX_SIDE)).all(dim=1)
    labels = data.y[inside].int().unique().tolist()
    print(f"corner ({left:4}, {bottom:4}), side {BOX_SIDE}:", end=" ")
    print(f"{int(inside.sum())} points of class {labels}")

print("inputs ", tuple(data.x.shape), data.x.dtype)
print("labels ", tuple(data.y.shape))

# %% [markdown]
# Look at the two diagonals, and at the empty cross between the boxes. The boxes are easy. What
# should a network say in the cross, where nobody has ever been?

# %%
plots.points(data, title="Opposite boxes share a class")

# %% [markdown]
# ## Why a network?
# A straight line puts one class on each side. How many of the points can the best of all
# straight lines get right? Guess before you run the next cell. It turns a line through all
# directions and slides it past every point.

# %%
angles = torch.arange(0, 360) * torch.pi / 180
directions = torch.stack([angles.cos(), angles.sin()]).to(data.x)  # (2, 360)
position = data.x @ directions  # (80, 360): how far each point lies along each direction

says_one = position[:, None, :] >= position[None, :, :]  # (point, threshold, direction)
right = (says_one == data.y.bool()[:, None, None]).sum(0)
best = int(right.max())

print(f"the best straight line gets {best} of {len(data)} points right")
assert best == 58

# %% [markdown]
# To get further, a line would have to fence off two boxes at once. So the model has to bend,
# and a small neural network will do.
#
# ## Precision and device
# Everything later is computed in the dtype of the data, on the device of the data.
# There is no other switch: the network is copied to where the data are. `boxes` gives float64
# on the CPU; for a network of this size a CPU will do.

# %%
half_as_precise = data.to(torch.float32)
moved = data.to(default_device())  # CUDA where there is one, else the CPU

assert half_as_precise.x.dtype == torch.float32 and data.x.dtype == torch.float64
assert moved.x.device == moved.y.device
print("float32 has half the bytes:", half_as_precise.x.nbytes, "against", data.x.nbytes)

# %% [markdown]
# ## Bad data are refused
# A single NaN would make every result NaN, and nothing that is computed later could recover. So
# data are checked where they enter.

# %%
broken = data.x.clone()
broken[17, 1] = torch.nan
try:
    Data(broken, data.y)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Exercises
# Try each in a new cell before you open its solution; both start from what this notebook has
# computed.
#
# ### Exercise: one more number
# A straight line fails because it sees `x1` and `x2` apart. Compute *one* number from the two,
# such that a single threshold on it gets all 80 points right. (This is what a hidden layer has
# to find by itself.)
#
# <details><summary>Solution</summary>
#
# ```python
# feature = data.x[:, 0] * data.x[:, 1]  # positive in two opposite quadrants
# right = int(((feature > 0) == data.y.bool()).sum())
# print(f"the product gets {right} of {len(data)} points right")
# assert right == len(data)
# ```
#
# With the right feature, a threshold is enough. The hard part of the problem is the feature.
#
# </details>
#
# ### Exercise: is 58 a lot?
# The search above tried thousands of lines and kept the best. Something tried that often may
# look good by luck. Shuffle the labels 200 times, so that place says nothing about class, and
# search again each time. Guess first: half of 80 is 40. What does the best line get, and how
# often is that 58 or more?
#
# <details><summary>Solution</summary>
#
# ```python
# generator = torch.Generator().manual_seed(0)
# found = []
# for _ in range(200):
#     shuffled = data.y.cpu()[torch.randperm(80, generator=generator)].bool()
#     found.append(int((says_one == shuffled[:, None, None]).sum(0).max()))
# as_good = sum(number >= best for number in found)
# print(f"with shuffled labels, the best line gets {min(found)} to {max(found)} of 80 right,")
# print(f"and {best} or more in {as_good} of 200 shuffles")
# # One shuffle in 110 gets there (36 of 4,000), so 10 of 200 once in some 50,000.
# assert 40 < min(found) and as_good < 10
# ```
#
# The best of many looks better than a coin even where there is nothing to find. But it seldom
# gets to 58, so 58 is more than luck.
#
# </details>

# %% [markdown]
# ## What to remember
# - 80 points, two classes, four boxes: no straight line gets more than three quarters of them
#   right.
# - Between the boxes there are no data. A model that is certain there knows something that it
#   was never told.
#
# **Next:** [2. One network, one vector](02_model.ipynb)
