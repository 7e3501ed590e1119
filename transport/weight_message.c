/* See weight_message.h: a tag, the fixed fields, the data. */
#include "transport/weight_message.h"

#include "core/log.h"
#include "transport/wire.h"

#include <stdlib.h>
#include <string.h>

enum { MESSAGE_TAG = 0x47544857 }; /* "WHTG" */

struct message_fixed {
    uint32_t tag, type;
    uint32_t form, version;
    uint64_t transfer;
    uint64_t total_bytes, offset;
    uint64_t hash, keep_from;
    uint32_t state, slots;
    uint32_t readers, reserved;
};

rl_status weight_message_encode(const struct weight_message *message, struct channel_message *out)
{
    const struct message_fixed fixed = {.tag = MESSAGE_TAG,
                                        .type = message->type,
                                        .form = message->form,
                                        .version = message->version,
                                        .transfer = message->transfer,
                                        .total_bytes = message->total_bytes,
                                        .offset = message->offset,
                                        .hash = message->hash,
                                        .keep_from = message->keep_from,
                                        .state = message->state,
                                        .slots = message->slots,
                                        .readers = message->readers};
    unsigned char *joined = malloc(sizeof fixed + message->bytes);
    if (joined == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a piece of weights");
    }
    memcpy(joined, &fixed, sizeof fixed);
    if (message->bytes > 0) {
        memcpy(joined + sizeof fixed, message->data, message->bytes);
    }
    rl_status status = wire_encode_bytes(joined, sizeof fixed + message->bytes, out);
    free(joined);
    return status;
}

static bool piece_is_sound(const struct message_fixed *fixed, size_t bytes)
{
    return (fixed->form == WEIGHT_FULL || fixed->form == WEIGHT_DELTA) && bytes > 0 &&
           fixed->offset <= fixed->total_bytes && bytes <= fixed->total_bytes - fixed->offset;
}

rl_status weight_message_decode(const struct channel_message *frame, struct weight_message *out)
{
    const void *data = NULL;
    size_t bytes = 0;
    struct message_fixed fixed = {0};
    RL_TRY(wire_decode_bytes(frame, &data, &bytes));
    if (bytes >= sizeof fixed) {
        memcpy(&fixed, data, sizeof fixed);
    }
    size_t rest = bytes - sizeof fixed;
    bool sound = fixed.tag == MESSAGE_TAG &&
                 ((fixed.type == WEIGHT_PIECE && piece_is_sound(&fixed, rest)) ||
                  (fixed.type == WEIGHT_STATE && rest == 0 && fixed.state >= WEIGHT_COMING &&
                   fixed.state <= WEIGHT_REFUSED) ||
                  (fixed.type == WEIGHT_CLEAR && rest == 0));
    if (!sound) {
        return rl_fail(RL_CORRUPT, "rank %d: %zu bytes that are no message of the weight path",
                       frame->peer, bytes);
    }
    *out = (struct weight_message){.type = fixed.type,
                                   .form = fixed.form,
                                   .version = fixed.version,
                                   .transfer = fixed.transfer,
                                   .total_bytes = fixed.total_bytes,
                                   .offset = fixed.offset,
                                   .hash = fixed.hash,
                                   .keep_from = fixed.keep_from,
                                   .state = fixed.state,
                                   .slots = fixed.slots,
                                   .readers = fixed.readers,
                                   .data =
                                       rest > 0 ? (const unsigned char *)data + sizeof fixed : NULL,
                                   .bytes = rest};
    return RL_OK;
}
