"""Bookkeeping of EAGLE/NEXTN speculative decoding in plain PyTorch.

Small integer tensors; each function is the CPU twin of the upstream Triton or CUDA kernel of the same name (without
``_cpu``), takes its arguments, and writes its output arguments in place. ``req_to_token`` [requests, max_len] maps a
request's token positions to slots of the key-value pool.
"""

from __future__ import annotations

import ctypes

import torch


def _ragged(req_pool_indices, start, end):
    """Return row and column in ``req_to_token`` of each position start[i] .. end[i] - 1, request after request."""
    lengths = (end - start).long()
    rows = torch.repeat_interleave(req_pool_indices.long(), lengths)
    first = lengths.cumsum(0) - lengths
    offset = torch.repeat_interleave(start.long() - first, lengths)
    return rows, torch.arange(rows.shape[0]) + offset


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    bs_upper: int | None = None,
) -> None:
    """Record newly allocated slots: ``req_to_token[request, start:end]`` from ``out_cache_loc``, in order.

    :param req_pool_indices: [N] rows of ``req_to_token``.
    :param start_offset: [N] first position, inclusive.
    :param end_offset: [N] last position, exclusive.
    :param out_cache_loc: [sum(end - start)] slots.
    :param pool_len: max_len; the tensor's own shape says it here.
    :param bs_upper: block size of upstream's kernel, unused.
    """
    rows, columns = _ragged(req_pool_indices, start_offset, end_offset)
    req_to_token[rows, columns] = out_cache_loc[: rows.shape[0]].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    bs_upper: int | None = None,
) -> None:
    """Read slots back: the reverse of :func:`assign_req_to_token_pool_cpu`, into ``out_cache_loc``."""
    rows, columns = _ragged(req_pool_indices, start_offset, end_offset)
    out_cache_loc[: rows.shape[0]] = req_to_token[rows, columns].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
) -> None:
    """Read the ``topk * speculative_num_steps`` slots after each sequence's end into ``out_cache_loc``, in order.

    :param seq_lens: [N].
    :param out_cache_loc: [N * topk * speculative_num_steps].
    """
    after = seq_lens + topk * speculative_num_steps
    assign_extend_cache_locs_cpu(req_pool_indices, req_to_token, seq_lens, after, out_cache_loc, pool_len)


def assign_draft_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_lens: torch.Tensor | None,
    num_new_pages_per_topk: torch.Tensor | None,
    out_cache_loc: torch.Tensor,
    source_cache_loc: torch.Tensor | None,
    target_cache_loc: torch.Tensor | None,
    last_page_lens_cumsum: torch.Tensor | None,
    duplicate_cache_len: int,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
    page_size: int,
    bs_upper: int,
    iter_upper: int,
) -> None:
    """Record the slots of the drafts to come, ``topk * speculative_num_steps`` after each sequence's end.

    :param seq_lens: [N].
    :param out_cache_loc: [N * topk * speculative_num_steps].
    :raises NotImplementedError: if pages are shared between branches; only then do the other parameters matter.
    """
    if page_size > 1 and topk > 1:
        raise NotImplementedError(
            f"sgl_kernel.assign_draft_cache_locs_cpu: {page_size=} with {topk=} has no CPU implementation"
        )
    after = seq_lens + topk * speculative_num_steps
    assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, seq_lens, after, out_cache_loc, pool_len)


def create_extend_after_decode_spec_info_cpu(
    verified_id: torch.Tensor,
    seq_lens: torch.Tensor,
    accept_lens: torch.Tensor,
    positions: torch.Tensor,
    new_verified_id: torch.Tensor,
    bs_upper: int,
) -> None:
    """Describe the accepted tokens as an extend: their positions, and the last one of each request.

    :param verified_id: [sum(accept_lens)] tokens, request after request.
    :param seq_lens: [N] lengths that include the accepted tokens.
    :param accept_lens: [N], at least 1.
    :param positions: [sum(accept_lens)], written: seq_lens - accept_lens .. seq_lens - 1.
    :param new_verified_id: [N], written.
    """
    rows, columns = _ragged(torch.arange(seq_lens.shape[0]), seq_lens - accept_lens, seq_lens)
    positions[: rows.shape[0]] = columns.to(positions.dtype)
    new_verified_id.copy_(verified_id[accept_lens.long().cumsum(0) - 1])


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """Pick the last accepted token of each request: ``accept_tokens[i * accept_stride + accept_lens[i] - 1]``.

    :param accept_tokens: [N * accept_stride].
    :param accept_lens: [N], at least 1.
    :param bonus_tokens: [N], written.
    """
    count = accept_lens.shape[0]
    last = torch.arange(count) * accept_stride + accept_lens.long() - 1
    bonus_tokens[:count] = accept_tokens.flatten()[last].to(bonus_tokens.dtype)


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor,
    out_cache_loc: torch.Tensor,
    accept_out_cache_loc: torch.Tensor,
    size_upper: int | None = None,
) -> None:
    """Gather the slots of accepted tokens, in order, to the front of ``accept_out_cache_loc``.

    :param accept_index: any shape, indices into ``out_cache_loc``, -1 where nothing was accepted.
    :param size_upper: block size of upstream's kernel, unused.
    """
    index = accept_index.flatten().long()
    index = index[index >= 0]
    accept_out_cache_loc[: index.shape[0]] = out_cache_loc[index].to(accept_out_cache_loc.dtype)


def gather_spec_extras_cpu(
    indices: torch.Tensor,
    topk_p_buf: torch.Tensor,
    topk_index_buf: torch.Tensor,
    output_tokens_buf: torch.Tensor,
    hidden_states_buf: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gather each request's row of what the draft left for its next step.

    :param indices: [N] rows of the buffers, whose first dimension is requests.
    :param hidden_states_buf: None where no hidden states are kept.
    :returns: the rows of the four buffers, None for None.
    """
    buffers = (topk_p_buf, topk_index_buf, output_tokens_buf, hidden_states_buf)
    return tuple(None if buffer is None else buffer[indices.long()] for buffer in buffers)


def rotate_input_ids_cpu(
    input_ids: torch.Tensor,
    extend_start_loc: torch.Tensor,
    extend_seq_lens: torch.Tensor,
    topk_index: torch.Tensor,
    select_index: torch.Tensor | None = None,
) -> None:
    """Shift each sequence's tokens left by one, then write its draft token.

    :param input_ids: [T], changed in place.
    :param extend_start_loc: [N].
    :param extend_seq_lens: [N].
    :param topk_index: [N] or [N, 1] draft tokens.
    :param select_index: [N] position in ``input_ids`` to write to; None means each sequence's last.
    """
    starts, lengths = extend_start_loc.tolist(), extend_seq_lens.tolist()
    targets = (extend_start_loc + extend_seq_lens - 1 if select_index is None else select_index).tolist()
    drafts = topk_index.flatten().to(input_ids.dtype)
    for i, (start, length, target) in enumerate(zip(starts, lengths, targets, strict=False)):
        sequence = input_ids[start : start + length]
        sequence[:-1] = sequence[1:].clone()
        input_ids[target] = drafts[i]


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copy rows of every layer's key and value buffer: row ``tgt_loc[i]`` becomes what row ``src_loc[i]`` was.

    :param data_ptrs: [buffers] addresses of the buffers' first bytes.
    :param strides: [buffers] bytes a row.
    :param tgt_loc: [M].
    :param src_loc: [M].
    """
    targets, sources = tgt_loc.tolist(), src_loc.tolist()
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        # Read all rows first: the two lists may overlap.
        rows = [ctypes.string_at(address + source * stride, stride) for source in sources]
        for target, row in zip(targets, rows, strict=True):
            ctypes.memmove(address + target * stride, row, stride)


def copy_all_layer_kv_cache_tiled_cpu(
    data_ptrs: torch.Tensor,
    strides: torch.Tensor,
    tgt_loc: torch.Tensor,
    src_loc: torch.Tensor,
    num_locs: int,
    num_locs_upper: int,
    **launch: int,
) -> None:
    """Copy the first ``num_locs`` rows as :func:`copy_all_layer_kv_cache_cpu` does.

    :param launch: tile size, warps and stages of upstream's kernel, unused as is ``num_locs_upper``.
    """
    copy_all_layer_kv_cache_cpu(data_ptrs, strides, tgt_loc[:num_locs], src_loc[:num_locs])


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int = 0,
) -> None:
    """Lay out each request's tree of drafts for one verification pass.

    Token 0 is the last verified token, the root; draft i > 0 is candidate ``c = selected_index[:, i - 1]``. It hangs
    on the root if ``c // topk`` is 0, else on the draft that is candidate ``parent_list[:, c // topk]``.

    :param parent_list: [N, topk * (depth - 1) + 1].
    :param selected_index: [N, draft_token_num - 1], a parent before its children.
    :param verified_seq_len: [N] tokens before the root.
    :param tree_mask: flat bool. Mode 0: per request [draft_token_num, len + draft_token_num], of which only the last
        draft_token_num columns are written; mode 1: [draft_token_num, draft_token_num]. True where row may see column.
    :param positions: [N * draft_token_num], written: the token's place in the sequence.
    :param retrive_index: [N, draft_token_num], written: the token's row in the flattened batch.
    :param retrive_next_token: [N, draft_token_num], written: the first child, or -1.
    :param retrive_next_sibling: [N, draft_token_num], written: the next child of the same parent, or -1.
    :raises NotImplementedError: for another mask mode (2, packed bits).
    """
    if int(tree_mask_mode) not in (0, 1):
        raise NotImplementedError(
            f"sgl_kernel.build_tree_kernel_efficient_cpu: {tree_mask_mode=} has no CPU implementation"
        )
    n = draft_token_num
    retrive_index.copy_(torch.arange(retrive_index.numel()).view_as(retrive_index))
    retrive_next_token.fill_(-1)
    retrive_next_sibling.fill_(-1)
    written = 0
    for request, length in enumerate(verified_seq_len.tolist()):
        candidates = selected_index[request].tolist()
        ancestors = [[0]]
        last_child: dict[int, int] = {}
        for i, candidate in enumerate(candidates, start=1):
            group = candidate // topk
            parent = 0 if group == 0 else candidates.index(int(parent_list[request, group])) + 1
            ancestors.append([*ancestors[parent], i])
            if parent in last_child:
                retrive_next_sibling[request, last_child[parent]] = i
            else:
                retrive_next_token[request, parent] = i
            last_child[parent] = i
        width = length + n if int(tree_mask_mode) == 0 else n
        mask = tree_mask[written : written + n * width].view(n, width)[:, width - n :]
        written += n * width
        mask.fill_(False)
        for i, path in enumerate(ancestors):
            mask[i, path] = True
            positions[request * n + i] = length + len(path) - 1


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Accept the longest path of drafts that the target model would have chosen greedily.

    From the root, step to the child whose token is the target's prediction at the current token, until none is or
    the path is full. The prediction at the path's last token is the bonus token.

    :param predicts: [N * draft_token_num], written at the rows of the path: the target's prediction there.
    :param accept_index: [N, max_path], written: rows of the path, root first; the rest is left as it is.
    :param accept_token_num: [N], written: drafts accepted.
    :param candidates: [N, draft_token_num] tokens.
    :param retrive_index: [N, draft_token_num], with the two below as :func:`build_tree_kernel_efficient_cpu` writes.
    :param target_predict: [N, draft_token_num] or flat, the target's greedy choice after each token.
    """
    max_path = accept_index.shape[1]
    tokens, rows = candidates.tolist(), retrive_index.tolist()
    children, siblings = retrive_next_token.tolist(), retrive_next_sibling.tolist()
    wanted = target_predict.reshape(candidates.shape).tolist()
    for request in range(candidates.shape[0]):
        path = [0]
        while len(path) < max_path:
            child = children[request][path[-1]]
            while child != -1 and tokens[request][child] != wanted[request][path[-1]]:
                child = siblings[request][child]
            if child == -1:
                break
            path.append(child)
        for step, node in enumerate(path):
            predicts[rows[request][node]] = wanted[request][node]
            accept_index[request, step] = rows[request][node]
        accept_token_num[request] = len(path) - 1
