/* Millpond: inference for linear-attention language models, for programs that speak C.
 *
 * Every function returns a status and takes, last, a place for a message, which may be NULL.
 *
 * Threads: every function may be called from any thread, at any time, also by several threads with the same handle. No
 * function keeps a pointer that it was given after it returns, except a callback's user data while
 * millpond_generation_wait runs.
 *
 * Handles: they are not addresses, though they look like pointers. A handle that has been freed, was never given out or
 * is of another kind is reported as MILLPOND_INVALID_HANDLE. Freeing NULL does nothing. Objects live as long as something
 * uses them: an engine keeps its model, and a thread that waits for a generation keeps that.
 *
 * Text is UTF-8. `char` results are not closed by a zero; their length is in bytes. A function that fills a buffer always
 * writes the length that the result has, so call it with a capacity of 0 to ask for it
 * (MILLPOND_BUFFER_TOO_SMALL), then again.
 *
 * Panics do not leave the library: they are reported as MILLPOND_INTERNAL. Running out of memory ends the process.
 */
#ifndef MILLPOND_H
#define MILLPOND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How a function ended. */
enum millpond_status {
    MILLPOND_OK = 0,
    MILLPOND_NULL_POINTER = 1,      /* a pointer that must not be NULL is */
    MILLPOND_INVALID_ARGUMENT = 2,  /* out of range, no UTF-8, options that were not initialised */
    MILLPOND_INVALID_HANDLE = 3,    /* freed, never given out, or of another kind */
    MILLPOND_BUFFER_TOO_SMALL = 4,  /* the size that is needed has been written */
    MILLPOND_LOAD_FAILED = 5,       /* the model cannot be loaded */
    MILLPOND_UNSUPPORTED = 6,       /* the model has no tokenizer or no chat template */
    MILLPOND_BAD_TEXT = 7,          /* refused by the tokenizer or the chat template */
    MILLPOND_START_FAILED = 8,      /* the engine cannot be started */
    MILLPOND_QUEUE_FULL = 9,        /* too many requests wait: try again later */
    MILLPOND_TOO_LONG = 10,         /* more than the context or the memory budget holds */
    MILLPOND_STOPPED = 11,          /* the engine has been stopped */
    MILLPOND_WRONG_ORDER = 12,      /* the generation has been waited for already */
    MILLPOND_REQUEST_FAILED = 13,   /* an accepted request failed; others go on */
    MILLPOND_INTERNAL = 14          /* a defect of this library */
};

/* Why a generation ended. */
enum millpond_finish {
    MILLPOND_FINISH_END_OF_TEXT = 0, /* the model ended the text */
    MILLPOND_FINISH_STOP = 1,        /* one of the stop texts came up */
    MILLPOND_FINISH_LENGTH = 2,      /* max_tokens, the context or the memory is used up */
    MILLPOND_FINISH_CANCELLED = 3    /* it was cancelled */
};

#define MILLPOND_MESSAGE_BYTES 512

/* A status and what there is to say about it; the message is empty after success, and closed by a zero. */
typedef struct millpond_error {
    int32_t status;
    char message[MILLPOND_MESSAGE_BYTES];
} millpond_error;

typedef struct millpond_model millpond_model;           /* weights and tokenizer */
typedef struct millpond_engine millpond_engine;         /* threads that run requests */
typedef struct millpond_generation millpond_generation; /* a request under way */

/* The version of the library, such as "0.1.0", and the name of a status (NULL if it is none). Both live for ever. */
const char *millpond_version(void);
const char *millpond_status_name(int32_t status);

/* --- Models --- */

typedef struct millpond_load_options {
    size_t size;          /* written by millpond_load_options_init */
    const char *mtp_path; /* GGUF file with the multi-token-prediction head of a model without it; or NULL */
    int32_t no_mmap;      /* not 0: read the files into memory instead of mapping them */
} millpond_load_options;

typedef struct millpond_model_info {
    size_t vocabulary;    /* tokens of the vocabulary */
    size_t context;       /* tokens the model was made for */
    uint64_t parameters;  /* of all matrices */
    uint64_t bytes;       /* of its files */
    uint64_t fingerprint; /* tells models apart */
    int32_t has_tokenizer;
    int32_t has_chat_template;
} millpond_model_info;

int32_t millpond_load_options_init(millpond_load_options *options);

/* Loads a GGUF file or a Hugging Face folder. `options` may be NULL. On failure *model is NULL. A mapped file must not be
 * shortened while the model lives. */
int32_t millpond_model_load(const char *path, const millpond_load_options *options, millpond_model **model,
                            millpond_error *error);
int32_t millpond_model_free(millpond_model *model, millpond_error *error);
int32_t millpond_model_describe(const millpond_model *model, millpond_model_info *info, millpond_error *error);
int32_t millpond_model_name(const millpond_model *model, char *buffer, size_t capacity, size_t *length,
                            millpond_error *error);

/* --- Text --- */

/* parse_special: not 0 where control tokens written in the text count as such. Not for text of strangers. */
int32_t millpond_tokenize(const millpond_model *model, const char *text, size_t bytes, int32_t parse_special,
                          uint32_t *tokens, size_t capacity, size_t *count, millpond_error *error);

/* Bytes that are no characters become U+FFFD. */
int32_t millpond_detokenize(const millpond_model *model, const uint32_t *tokens, size_t count, int32_t skip_special,
                            char *buffer, size_t capacity, size_t *length, millpond_error *error);

/* messages_json: [{"role": "user", "content": "Hello"}, ...]. add_generation_prompt: not 0 where the text is to end where
 * the assistant's answer begins. The first is for looking at; the second is for generating: control tokens written in
 * messages of users stay plain text there. */
int32_t millpond_chat_render(const millpond_model *model, const char *messages_json, int32_t add_generation_prompt,
                             char *buffer, size_t capacity, size_t *length, millpond_error *error);
int32_t millpond_chat_tokenize(const millpond_model *model, const char *messages_json, int32_t add_generation_prompt,
                               uint32_t *tokens, size_t capacity, size_t *count, millpond_error *error);

/* --- Engines --- */

typedef struct millpond_engine_options {
    size_t size;           /* written by millpond_engine_options_init */
    size_t threads;        /* 0 for one per physical core */
    size_t context;        /* most tokens of a request, prompt and answer; 0 for what the model was made for */
    size_t max_running;    /* most requests that run at once */
    size_t max_queue;      /* most requests that wait */
    int64_t memory_budget; /* bytes that running requests may hold; -1 for a share of the machine's memory */
    int64_t cache_budget;  /* bytes that the prefix cache may hold; -1 for a share of the machine's memory */
} millpond_engine_options;

int32_t millpond_engine_options_init(millpond_engine_options *options);

/* `options` may be NULL. Several engines may share a model. On failure *engine is NULL. */
int32_t millpond_engine_start(const millpond_model *model, const millpond_engine_options *options,
                              millpond_engine **engine, millpond_error *error);

/* Stops the engine. Generations under way end with MILLPOND_STOPPED. */
int32_t millpond_engine_free(millpond_engine *engine, millpond_error *error);

/* --- Generations --- */

typedef struct millpond_request {
    size_t size; /* written by millpond_request_init */
    const uint32_t *prompt;
    size_t prompt_count;
    int64_t max_tokens;      /* -1 for as many as the context holds */
    int64_t seed;            /* -1 for a fresh one */
    const char *const *stop; /* texts that end the answer; they are not part of it */
    size_t stop_count;
    const char *json_schema; /* JSON schema that the answer has to satisfy; or NULL */
    const char *grammar;     /* grammar in llama.cpp's notation (GBNF) that the answer has to match; or NULL */
    float temperature;       /* 0 always takes the likeliest token */
    int32_t top_k;           /* 0 for all */
    float top_p;             /* 1 for all */
    float min_p;             /* 0 for all */
    float repeat_penalty;    /* 1 does nothing */
    float presence_penalty;
    float frequency_penalty;
    int32_t repeat_last_n; /* tokens that penalties look at; 0 none, -1 all */
    int32_t ignore_eos;    /* not 0: go on after a token that ends the text */
    int32_t cache_prompt;  /* not 0: use and feed the prefix cache */
    int32_t background;    /* not 0: yield to requests that somebody waits for */
} millpond_request;

typedef struct millpond_result {
    int32_t finish; /* enum millpond_finish */
    size_t prompt_tokens;
    size_t cached_tokens;
    size_t completion_tokens;
    size_t drafted_tokens;
    size_t accepted_tokens;
    double queued_seconds;
    double prefill_seconds; /* from leaving the queue to the first token */
    double decode_seconds;  /* from the first token to the last */
} millpond_result;

/* Gets each piece of text: whole characters, not closed by a zero. Returns 0 to go on, anything else to cancel. It runs
 * on the thread that waits, may call any function of this library, and must return: no exception, no longjmp. */
typedef int32_t (*millpond_text_callback)(const char *text, size_t bytes, void *user_data);

int32_t millpond_request_init(millpond_request *request);

/* Hands a request to the engine and returns at once. On failure *generation is NULL. */
int32_t millpond_generation_start(const millpond_engine *engine, const millpond_request *request,
                                  millpond_generation **generation, millpond_error *error);

/* Waits until the generation ends; once for each generation. `callback`, `user_data` and `result` may be NULL. A cancelled
 * generation ends with MILLPOND_OK and MILLPOND_FINISH_CANCELLED. */
int32_t millpond_generation_wait(const millpond_generation *generation, millpond_text_callback callback,
                                 void *user_data, millpond_result *result, millpond_error *error);

/* Asks the generation to end soon. No mistake if it has ended already. */
int32_t millpond_generation_cancel(const millpond_generation *generation, millpond_error *error);

/* Cancels the generation if it still runs, and frees it. */
int32_t millpond_generation_free(millpond_generation *generation, millpond_error *error);

#ifdef __cplusplus
}
#endif

#endif
