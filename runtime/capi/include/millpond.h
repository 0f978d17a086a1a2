/* Millpond: inference for linear-attention language models, for programs that speak C.
 * Generated from the sources; changes here are lost.
 *
 * Every function that can fail returns a millpond_status and takes, last, a place for a message, which may be NULL.
 *
 * Threads: every function may be called from any thread, at any time, also by several threads with the same handle.
 * Functions that wait (millpond_model_load, millpond_generation_wait, millpond_generation_listen, millpond_embed,
 * millpond_embedding_wait, millpond_session_*, and millpond_generation_read as long as it is told) block the calling
 * thread alone. Callbacks run on the thread that called the function they were
 * given to, never on one of the library's own. No function keeps a pointer that it was given after it returns.
 *
 * Handles: they are not addresses, though they look like pointers. A handle that has been freed, was never given out or
 * is of another kind is reported as MILLPOND_STATUS_INVALID_HANDLE. Freeing NULL does nothing. Objects live as long as
 * something uses them: an engine keeps its model, and a thread that waits for a generation keeps that.
 *
 * Pointers are checked for NULL and alignment. What cannot be checked is that they point to what their type says: one
 * value, as many as the count or capacity beside them says, or text closed by a zero.
 *
 * Text is UTF-8. `char` results are not closed by a zero unless it says so; their length is in bytes. A function that
 * fills a buffer always writes the length that the result has, so call it with a capacity of 0 to ask for it
 * (MILLPOND_STATUS_BUFFER_TOO_SMALL), then again.
 *
 * Structures with a `size` are filled by their init function before anything else. Structures may grow between versions
 * 0.x: compile against the header of the library that you run with.
 *
 * Panics do not leave the library: they are reported as MILLPOND_STATUS_INTERNAL. Running out of memory ends the
 * process.
 */

#ifndef MILLPOND_H
#define MILLPOND_H

#include <stddef.h>
#include <stdint.h>

// Bytes of a message, the closing zero included.
#define MILLPOND_MESSAGE_BYTES 512

// Bytes of a session's name, the closing zero included.
#define MILLPOND_SESSION_NAME_BYTES 72

// How a function ended. The numbers never change their meaning; new ones may come.
typedef enum {
    // As it should.
    MILLPOND_STATUS_OK = 0,
    // A pointer that must not be NULL is.
    MILLPOND_STATUS_NULL_POINTER = 1,
    // A value out of its range, text that is no UTF-8, options that were not initialised.
    MILLPOND_STATUS_INVALID_ARGUMENT = 2,
    // The handle was never given out, has been freed, or is of another kind.
    MILLPOND_STATUS_INVALID_HANDLE = 3,
    // The result does not fit; the size that is needed has been written.
    MILLPOND_STATUS_BUFFER_TOO_SMALL = 4,
    // The model cannot be loaded.
    MILLPOND_STATUS_LOAD_FAILED = 5,
    // The model or the engine lacks what is asked for: a tokenizer, a chat template, a folder for sessions.
    MILLPOND_STATUS_UNSUPPORTED = 6,
    // Text or messages that the tokenizer or the chat template refuses.
    MILLPOND_STATUS_BAD_TEXT = 7,
    // The engine cannot be started.
    MILLPOND_STATUS_START_FAILED = 8,
    // Too many requests wait already: try again later.
    MILLPOND_STATUS_QUEUE_FULL = 9,
    // The request exceeds the context or the memory budget.
    MILLPOND_STATUS_TOO_LONG = 10,
    // The engine has been stopped.
    MILLPOND_STATUS_STOPPED = 11,
    // The generation has been waited for already, or is being waited for.
    MILLPOND_STATUS_WRONG_ORDER = 12,
    // An accepted request failed; others go on.
    MILLPOND_STATUS_REQUEST_FAILED = 13,
    // A defect of this library.
    MILLPOND_STATUS_INTERNAL = 14,
    // A callback of the host gave up.
    MILLPOND_STATUS_CANCELLED = 15,
    // There is no session of that name.
    MILLPOND_STATUS_NOT_FOUND = 16,
    // A session cannot be saved or loaded: damaged, of another model, or the system refuses.
    MILLPOND_STATUS_SESSION_FAILED = 17,
} millpond_status;

// Why a generation ended.
typedef enum {
    // The model ended the text.
    MILLPOND_FINISH_END_OF_TEXT = 0,
    // One of the stop texts came up.
    MILLPOND_FINISH_STOP = 1,
    // The number of tokens asked for, the context or the memory is used up.
    MILLPOND_FINISH_LENGTH = 2,
    // It was cancelled.
    MILLPOND_FINISH_CANCELLED = 3,
} millpond_finish;

// How the hidden states of a text become one vector.
typedef enum {
    // The mean over all tokens.
    MILLPOND_POOLING_MEAN = 0,
    // That of the last token.
    MILLPOND_POOLING_LAST = 1,
} millpond_pooling;

// Where drafts come from. They change the speed of an answer and never its tokens.
typedef enum {
    // A draft model, the model's own head, or earlier text: the best of what there is, while it pays.
    MILLPOND_SPECULATION_AUTO = 0,
    // No drafts.
    MILLPOND_SPECULATION_OFF = 1,
    // Repetition of earlier text.
    MILLPOND_SPECULATION_NGRAM = 2,
    // The model's own multi-token-prediction head.
    MILLPOND_SPECULATION_MTP = 3,
    // The draft model.
    MILLPOND_SPECULATION_DRAFT = 4,
} millpond_speculation;

// Threads that run requests for a model.
typedef struct millpond_engine millpond_engine;

// A request under way.
typedef struct millpond_generation millpond_generation;

// Weights and tokenizer of a model.
typedef struct millpond_model millpond_model;

// Told how far loading is, on the thread that loads: bytes within reach, and bytes of all files. Returns 0 to go on,
// anything else to give up. It must return: no exception, no longjmp.
typedef int32_t (*millpond_progress_callback)(uint64_t done, uint64_t total, void *user_data);

// How to load a model; `millpond_load_options_init` writes the defaults.
typedef struct {
    // Bytes of this structure, written by its init function.
    size_t size;
    // GGUF file with the multi-token-prediction head of a model published without it; or NULL.
    const char *mtp_path;
    // Not 0: read the files into memory instead of mapping them.
    int32_t no_mmap;
    // Not 0: keep mapped files in memory, so that nothing is paged out; loading fails where the system forbids it.
    int32_t mlock;
    // Not 0: read every page of mapped files at once, so that the first prompt need not wait for the disk.
    int32_t preload;
    // Told how far loading is; or NULL.
    millpond_progress_callback progress;
    // Passed to `progress`.
    void *progress_data;
} millpond_load_options;

// A status and what there is to say about it.
typedef struct {
    // A `millpond_status`.
    int32_t status;
    // UTF-8, closed by a zero; cut between characters if too long. Empty after success.
    char message[MILLPOND_MESSAGE_BYTES];
} millpond_error;

// What there is to say about a model.
typedef struct {
    // Tokens of the vocabulary.
    size_t vocabulary;
    // Tokens the model was made for.
    size_t context;
    // Values of an embedding.
    size_t embedding;
    // Parameters of all matrices.
    uint64_t parameters;
    // Bytes of the files.
    uint64_t bytes;
    // Tells models apart.
    uint64_t fingerprint;
    // 1 if text can be turned into tokens.
    int32_t has_tokenizer;
    // 1 if messages can be turned into a prompt.
    int32_t has_chat_template;
} millpond_model_info;

// What a chat template gets besides the messages; `millpond_chat_options_init` writes the defaults.
typedef struct {
    // Bytes of this structure, written by its init function.
    size_t size;
    // Tool definitions, [{"type": "function", "function": {...}}, ...]; or NULL.
    const char *tools_json;
    // An object of further variables of the template, such as {"enable_thinking": false}; or NULL.
    const char *variables_json;
    // Not 0, the default: the text ends where the assistant's answer begins.
    int32_t add_generation_prompt;
} millpond_chat_options;

// How an engine is set up; `millpond_engine_options_init` writes the defaults.
typedef struct {
    // Bytes of this structure, written by its init function.
    size_t size;
    // Worker threads; 0 for one per physical core.
    size_t threads;
    // Most tokens of a request, prompt and answer together; 0 for what the model was made for.
    size_t context;
    // Most requests that run at once.
    size_t max_running;
    // Most requests that wait.
    size_t max_queue;
    // Threads of passes that read a prompt; 0 for as many as `threads`.
    size_t prefill_threads;
    // Most rows of prompts in one pass, in chunks of 64: more are faster and take more memory.
    size_t prefill_rows;
    // Longest draft of speculation, at most 64; 0 for none.
    size_t draft_max;
    // Shortest draft: shorter ones are dropped.
    size_t draft_min;
    // A small model of the same vocabulary that drafts; or NULL. It lives as long as the engine.
    const millpond_model *draft_model;
    // Where drafts come from: a `millpond_speculation`.
    int32_t speculation;
    // Bytes that running requests may hold; -1 for a share of the machine's memory.
    int64_t memory_budget;
    // Bytes that the prefix cache may hold; -1 for a share of the machine's memory.
    int64_t cache_budget;
    // Folder of saved sessions, which need one; or NULL.
    const char *session_dir;
    // Not 0: reuse only state that gives the very bits of a run without a cache.
    int32_t exact_cache;
} millpond_engine_options;

// Counters since the start of an engine, and how it stands now.
typedef struct {
    // Requests accepted.
    uint64_t accepted;
    // Requests refused because the queue was full.
    uint64_t refused;
    // Requests that ended as they should.
    uint64_t completed;
    // Requests cancelled.
    uint64_t cancelled;
    // Requests that failed.
    uint64_t failed;
    // Passes over the weights.
    uint64_t steps;
    // Tokens of prompts.
    uint64_t prompt_tokens;
    // Of these, tokens whose state was reused.
    uint64_t cached_tokens;
    // Tokens generated.
    uint64_t generated_tokens;
    // Tokens proposed by drafts.
    uint64_t drafted_tokens;
    // Proposed tokens accepted.
    uint64_t accepted_tokens;
    // Seconds spent in passes with a slice of a prompt.
    double prefill_seconds;
    // Seconds spent in passes without.
    double decode_seconds;
    // Requests that wait.
    size_t waiting;
    // Requests that run.
    size_t running;
    // Most requests that run at once.
    size_t max_running;
    // Most tokens of a request.
    size_t context;
    // Bytes reserved for running requests, and bytes that may be.
    size_t reserved_bytes;
    // See reserved_bytes.
    size_t memory_budget;
    // Snapshots in the prefix cache.
    size_t cache_entries;
    // Bytes that the prefix cache holds, and bytes that it may hold.
    size_t cache_bytes;
    // See cache_bytes.
    size_t cache_budget;
} millpond_stats;

// A change of the likelihood of a token.
typedef struct {
    // Its id.
    uint32_t id;
    // Added to its logit; negative infinity forbids it.
    float bias;
} millpond_bias;

// A prompt and what to make of it; `millpond_request_init` writes the defaults: those of the library, and no prompt.
typedef struct {
    // Bytes of this structure, written by its init function.
    size_t size;
    // Token ids of the prompt.
    const uint32_t *prompt;
    // Number of token ids.
    size_t prompt_count;
    // Most tokens to generate; -1 for as many as the context holds, 0 only reads the prompt.
    int64_t max_tokens;
    // Seed of the random choices; -1 for a fresh one.
    int64_t seed;
    // Texts that end the answer and are not part of it, each closed by a zero; NULL if there are none.
    const char *const *stop;
    // Number of such texts.
    size_t stop_count;
    // JSON schema that the answer has to satisfy; or NULL. At most one of the four constraints may be set.
    const char *json_schema;
    // Grammar in llama.cpp's notation (GBNF) that the answer has to match; or NULL.
    const char *grammar;
    // Grammar in llguidance's variant of Lark; or NULL.
    const char *lark;
    // Regular expression that the whole answer has to match; or NULL.
    const char *regex;
    // Name under which the state is kept at the end, for millpond_session_save; or NULL.
    const char *session;
    // Temperature; 0 always takes the likeliest token.
    float temperature;
    // Likeliest tokens kept; 0 for all.
    int32_t top_k;
    // Probability that the kept tokens reach together; 1 for all.
    float top_p;
    // Least share of the largest probability; 0 for all.
    float min_p;
    // Divides the logits of tokens seen lately; 1 does nothing.
    float repeat_penalty;
    // Subtracted from the logits of tokens seen lately.
    float presence_penalty;
    // Subtracted for each time they were seen.
    float frequency_penalty;
    // Tokens that count as lately; 0 none, -1 all.
    int32_t repeat_last_n;
    // Alternatives whose probabilities a listener is told beside that of each token, at most 64; -1 for no
    // probabilities at all.
    int32_t logprobs;
    // Not 0: tell the same about the tokens of the prompt.
    int32_t echo;
    // Not 0: go on after a token that ends the text.
    int32_t ignore_eos;
    // Not 0: use and feed the prefix cache.
    int32_t cache_prompt;
    // Not 0: yield to requests that somebody waits for.
    int32_t background;
    // Probability of the locally typical tokens kept; 1 for all.
    float typical_p;
    // Standard deviations below the largest logit kept; 0 and less for all.
    float top_n_sigma;
    // Chance of removing all but the least of the probable tokens (XTC).
    float xtc_probability;
    // Probability from which a token counts as probable for XTC.
    float xtc_threshold;
    // Strength of the penalty on repeated sequences (DRY); 0 does nothing.
    float dry_multiplier;
    // Growth of DRY with each repeated token.
    float dry_base;
    // Longest repetition that DRY leaves alone.
    uint32_t dry_allowed_length;
    // Tokens that DRY looks at; 0 none, -1 all.
    int32_t dry_penalty_last_n;
    // How far the temperature moves with the entropy; 0 leaves it alone.
    float dynatemp_range;
    // Exponent of that entropy.
    float dynatemp_exponent;
    // 1 or 2: this form of Mirostat in place of all samplers but the temperature; 0 for none.
    int32_t mirostat;
    // Surprise of a token that Mirostat aims at, in bits.
    float mirostat_tau;
    // How much of the last error Mirostat corrects.
    float mirostat_eta;
    // Where drafts come from, a `millpond_speculation`; -1 for where the engine has them from.
    int32_t speculation;
    // Changes of the likelihood of tokens; NULL if there are none.
    const millpond_bias *bias;
    // Number of these.
    size_t bias_count;
    // Longest draft, that of the engine at most; -1 for that.
    int64_t draft_max;
} millpond_request;

// Gets each piece of text: whole characters of UTF-8, not closed by a zero. Returns 0 to go on, anything else to
// cancel. It runs on the thread that waits, may call any function of this library, and must return: no exception, no
// longjmp.
typedef int32_t (*millpond_text_callback)(const char *text, size_t bytes, void *user_data);

// A token that could have been chosen.
typedef struct {
    // Its id.
    uint32_t id;
    // Natural logarithm of its probability.
    float logprob;
} millpond_alternative;

// A token and its probability.
typedef struct {
    // Its id.
    uint32_t id;
    // 1 if the request asked for probabilities.
    int32_t has_logprob;
    // Natural logarithm of its probability, before temperature, penalties and constraints.
    float logprob;
    // The likeliest tokens in its place, best first.
    const millpond_alternative *top;
    // Number of these.
    size_t top_count;
    // Text that became final with it, not closed by a zero; maybe none. Empty for tokens of the prompt.
    const char *text;
    // Bytes of the text.
    size_t text_bytes;
} millpond_token;

// Told of each token. What it points to lives during the call only. As `millpond_text_callback` otherwise.
typedef int32_t (*millpond_token_callback)(const millpond_token *token, void *user_data);

// Told how much of the prompt has been read: tokens done, of how many, and how many came from the cache. As
// `millpond_text_callback` otherwise.
typedef int32_t (*millpond_prompt_callback)(size_t done, size_t total, size_t cached, void *user_data);

// What a host wants to hear of a generation; `millpond_listener_init` sets all functions to NULL.
typedef struct {
    // Bytes of this structure, written by its init function.
    size_t size;
    // Passed to every function.
    void *user_data;
    // Gets the text.
    millpond_text_callback on_text;
    // Gets the tokens.
    millpond_token_callback on_token;
    // Gets the tokens of the prompt but the first, whose probabilities `echo` asks for.
    millpond_token_callback on_prompt_token;
    // Gets the progress of the prompt.
    millpond_prompt_callback on_prompt;
} millpond_listener;

// How a generation ended and what it cost.
typedef struct {
    // A `millpond_finish`.
    int32_t finish;
    // Tokens of the prompt.
    size_t prompt_tokens;
    // Of these, tokens whose state was reused.
    size_t cached_tokens;
    // Tokens generated.
    size_t completion_tokens;
    // Tokens proposed by drafts.
    size_t drafted_tokens;
    // Proposed tokens accepted.
    size_t accepted_tokens;
    // Seconds in the queue.
    double queued_seconds;
    // Seconds from leaving the queue to the first token.
    double prefill_seconds;
    // Seconds from the first token to the last.
    double decode_seconds;
} millpond_result;

// A saved session.
typedef struct {
    // Its name, closed by a zero.
    char name[MILLPOND_SESSION_NAME_BYTES];
    // Tokens whose state it holds.
    size_t tokens;
    // Bytes of its file.
    uint64_t bytes;
    // The fingerprint of its model.
    uint64_t fingerprint;
    // When it was saved, in seconds since 1970; 0 where the system does not say.
    int64_t saved_at;
} millpond_session_info;

// Every status.
#define millpond_status_ALL { millpond_status_Ok, millpond_status_NullPointer, millpond_status_InvalidArgument, millpond_status_InvalidHandle, millpond_status_BufferTooSmall, millpond_status_LoadFailed, millpond_status_Unsupported, millpond_status_BadText, millpond_status_StartFailed, millpond_status_QueueFull, millpond_status_TooLong, millpond_status_Stopped, millpond_status_WrongOrder, millpond_status_RequestFailed, millpond_status_Internal, millpond_status_Cancelled, millpond_status_NotFound, millpond_status_SessionFailed, }

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The name of a status, such as "MILLPOND_STATUS_OK"; NULL for a number that is none. It lives for ever.
const char *millpond_status_name(int32_t status);

// The version of the library, such as "0.1.0". It lives for ever.
const char *millpond_version(void);

// Writes the defaults.
int32_t millpond_load_options_init(millpond_load_options *options);

// Loads a GGUF file or a Hugging Face folder. `options` may be NULL. On failure *model is NULL. A mapped file must not
// be shortened while the model lives.
int32_t millpond_model_load(const char *path,
                            const millpond_load_options *options,
                            millpond_model **model,
                            millpond_error *error);

// Gives a model back. Engines that use it keep it alive. NULL does nothing.
int32_t millpond_model_free(millpond_model *model, millpond_error *error);

// Describes a model.
int32_t millpond_model_describe(const millpond_model *model, millpond_model_info *info, millpond_error *error);

// The name of a model: UTF-8, not closed by a zero.
int32_t millpond_model_name(const millpond_model *model,
                            char *buffer,
                            size_t capacity,
                            size_t *length,
                            millpond_error *error);

// Turns text into token ids. `parse_special` is not 0 where control tokens written in the text count as such: not for
// text of strangers.
int32_t millpond_tokenize(const millpond_model *model,
                          const char *text,
                          size_t bytes,
                          int32_t parse_special,
                          uint32_t *tokens,
                          size_t capacity,
                          size_t *count,
                          millpond_error *error);

// Turns token ids into text: UTF-8, not closed by a zero; bytes that are no characters become U+FFFD. `skip_special` is
// not 0 where control tokens are left out.
int32_t millpond_detokenize(const millpond_model *model,
                            const uint32_t *tokens,
                            size_t count,
                            int32_t skip_special,
                            char *buffer,
                            size_t capacity,
                            size_t *length,
                            millpond_error *error);

// The bytes of one token, which need not be whole characters; none for an id that is no token.
int32_t millpond_token_bytes(const millpond_model *model,
                             uint32_t token,
                             char *buffer,
                             size_t capacity,
                             size_t *length,
                             millpond_error *error);

// Writes the defaults.
int32_t millpond_chat_options_init(millpond_chat_options *options);

// Renders messages, [{"role": "user", "content": "Hello"}, ...], with the model's chat template: for looking at. To
// generate, use `millpond_chat_tokenize`, which lets nobody close a turn from within it. `options` may be NULL.
int32_t millpond_chat_render(const millpond_model *model,
                             const char *messages_json,
                             const millpond_chat_options *options,
                             char *buffer,
                             size_t capacity,
                             size_t *length,
                             millpond_error *error);

// Renders messages and turns them into token ids. Control tokens written in messages of users, systems and tools stay
// plain text. `options` may be NULL.
int32_t millpond_chat_tokenize(const millpond_model *model,
                               const char *messages_json,
                               const millpond_chat_options *options,
                               uint32_t *tokens,
                               size_t capacity,
                               size_t *count,
                               millpond_error *error);

// Turns a whole answer into a message to go on with, as JSON: {"role": "assistant", "content": ...}, with
// "reasoning_content" if the model thought aloud and "tool_calls" if it called tools. `options`, which may be NULL, names
// the tools. `starts_thinking` is not 0 where the prompt ended inside the thoughts.
int32_t millpond_chat_parse(const millpond_model *model,
                            const char *answer,
                            size_t bytes,
                            const millpond_chat_options *options,
                            int32_t starts_thinking,
                            char *buffer,
                            size_t capacity,
                            size_t *length,
                            millpond_error *error);

// Writes the defaults.
int32_t millpond_engine_options_init(millpond_engine_options *options);

// Starts an engine: a thread that runs requests, and workers. Several engines may share a model. `options` may be NULL.
// On failure *engine is NULL.
int32_t millpond_engine_start(const millpond_model *model,
                              const millpond_engine_options *options,
                              millpond_engine **engine,
                              millpond_error *error);

// Stops an engine. Generations under way end with MILLPOND_STATUS_STOPPED. NULL does nothing.
int32_t millpond_engine_free(millpond_engine *engine, millpond_error *error);

// What an engine has done and what it holds.
int32_t millpond_engine_stats(const millpond_engine *engine, millpond_stats *stats, millpond_error *error);

// Writes the defaults: those of the library, and no prompt.
int32_t millpond_request_init(millpond_request *request);

// Writes a listener that hears nothing.
int32_t millpond_listener_init(millpond_listener *listener);

// Hands a request to an engine and returns at once. On failure *generation is NULL.
int32_t millpond_generation_start(const millpond_engine *engine,
                                  const millpond_request *request,
                                  millpond_generation **generation,
                                  millpond_error *error);

// Waits until a generation ends; once for each. `callback`, `user_data` and `result` may be NULL. A cancelled
// generation ends with MILLPOND_STATUS_OK and MILLPOND_FINISH_CANCELLED.
int32_t millpond_generation_wait(const millpond_generation *generation,
                                 millpond_text_callback callback,
                                 void *user_data,
                                 millpond_result *result,
                                 millpond_error *error);

// As `millpond_generation_wait`, for hosts that want to hear more than the text.
int32_t millpond_generation_listen(const millpond_generation *generation,
                                   const millpond_listener *listener,
                                   millpond_result *result,
                                   millpond_error *error);

// Takes text as it comes, for hosts that do not want to be called back. Waits at most `timeout_ms` milliseconds for
// some (0: not at all; -1: as long as it takes), writes as many whole characters as there are and fit, and their number
// of bytes, 0 if none came in time. `*ended` becomes 1 once all text has been taken and the generation is over, and
// `result`, which may be NULL, is written then. A generation is read from or waited for, not both.
int32_t millpond_generation_read(const millpond_generation *generation,
                                 int64_t timeout_ms,
                                 char *text,
                                 size_t capacity,
                                 size_t *length,
                                 int32_t *ended,
                                 millpond_result *result,
                                 millpond_error *error);

// Asks a generation to end soon, from any thread. It is no mistake if it has ended already.
int32_t millpond_generation_cancel(const millpond_generation *generation, millpond_error *error);

// Cancels a generation if it still runs, and gives it back. NULL does nothing.
int32_t millpond_generation_free(millpond_generation *generation, millpond_error *error);

// Computes the embedding of a text, given as tokens, and waits for it. `pooling` is a `millpond_pooling`. An embedding
// has as many values as `millpond_model_info` says. `millpond_embedding_start` is for hosts that want to cancel.
int32_t millpond_embed(const millpond_engine *engine,
                       const uint32_t *tokens,
                       size_t count,
                       int32_t pooling,
                       float *values,
                       size_t capacity,
                       size_t *length,
                       millpond_error *error);

// Asks for the embedding of a text and returns at once. The generation is for `millpond_embedding_wait`,
// `millpond_generation_cancel` and `millpond_generation_free`. On failure *generation is NULL.
int32_t millpond_embedding_start(const millpond_engine *engine,
                                 const uint32_t *tokens,
                                 size_t count,
                                 int32_t pooling,
                                 millpond_generation **generation,
                                 millpond_error *error);

// Waits for the embedding that `millpond_embedding_start` asked for; once for each. One that was cancelled ends with
// MILLPOND_STATUS_CANCELLED. A buffer that is too small is no loss: the call can be made again.
int32_t millpond_embedding_wait(const millpond_generation *generation,
                                float *values,
                                size_t capacity,
                                size_t *length,
                                millpond_error *error);

// Saves the state that a request has left under `session` as `file`, a name in the engine's folder of sessions. `info`
// may be NULL. A file that was there before stays as it was on failure.
int32_t millpond_session_save(const millpond_engine *engine,
                              const char *session,
                              const char *file,
                              millpond_session_info *info,
                              millpond_error *error);

// Loads `file` and keeps its state under `session`, for requests whose prompts begin with its tokens. Writes these; a
// capacity of 0 asks for their number and loads nothing.
int32_t millpond_session_load(const millpond_engine *engine,
                              const char *file,
                              const char *session,
                              uint32_t *tokens,
                              size_t capacity,
                              size_t *count,
                              millpond_error *error);

// What the header of a saved session says.
int32_t millpond_session_describe(const millpond_engine *engine,
                                  const char *file,
                                  millpond_session_info *info,
                                  millpond_error *error);

// The saved sessions whose files are whole, by name.
int32_t millpond_session_list(const millpond_engine *engine,
                              millpond_session_info *sessions,
                              size_t capacity,
                              size_t *count,
                              millpond_error *error);

// Deletes a saved session. States in memory stay.
int32_t millpond_session_delete(const millpond_engine *engine, const char *file, millpond_error *error);

// Forgets the state kept in memory under `session`. Files stay.
int32_t millpond_session_forget(const millpond_engine *engine, const char *session, millpond_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MILLPOND_H */
