"""The versions that a graph is stamped with: the lowest that its operators need, so that older onnxruntimes load it.

torch's exporter stamps the newest versions that it knows, though most graphs use no operator that is so new.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx

# The lowest opset that torch's exporter writes by itself. Below it, it converts.
EXPORTED_OPSET = 18


def lower_versions(model: onnx.ModelProto) -> None:
    """Stamp the lowest opset at which every node means the same, and the lowest IR version that knows this opset.

    Nodes stay as they are. Only a `Split` gets the sizes of its parts as an input, for their number came with opset 18.
    """
    _write_split_sizes(model.graph)
    opset = next(part for part in model.opset_import if not part.domain)
    needed = [_since(node, opset.version) for node in _nodes(model.graph.node) if not node.domain]
    opset.version = max(needed, default=opset.version)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The first opset in which the operator of a node is what it is in `opset`."""
    if node.op_type == "Split" and not any(part.name == "num_outputs" for part in node.attribute):
        return 13  # 18 only added this attribute
    return int(onnx.defs.get_schema(node.op_type, opset).since_version)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those of loops and branches too."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                yield from _nodes(graph.node)


def _write_split_sizes(graph: onnx.GraphProto) -> None:
    """Write out the sizes of the parts of each `Split` that has their number only, where the graph fixes them."""
    values = [*graph.value_info, *graph.output]
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
    for node in graph.node:
        if node.op_type != "Split" or len(node.input) > 1:
            continue
        attributes = {part.name: part for part in node.attribute}
        axis = attributes["axis"].i if "axis" in attributes else 0
        parts = [shapes.get(name, []) for name in node.output]
        # 0 stands for a size that is not fixed.
        if "num_outputs" in attributes and all(part and part[axis] for part in parts):
            sizes = np.array([part[axis] for part in parts], np.int64)
            node.input.append(f"{node.output[0]}_sizes")
            graph.initializer.append(onnx.numpy_helper.from_array(sizes, node.input[1]))
            node.attribute.remove(attributes["num_outputs"])
