/* What there is besides plain text: tour MODEL FOLDER
 *
 * Loads with progress, answers in the form of a JSON schema, reads probabilities, saves a session to FOLDER and takes it
 * up again, compares embeddings, prints figures.
 *
 * cc -I runtime/capi/include runtime/capi/examples/tour.c -L target/release -lmillpond_capi -lm -o tour
 */
#include <math.h>
#include <millpond.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 512

static millpond_error error;

static void check(const char *what, int32_t status) {
    if (status == MILLPOND_STATUS_OK) return;
    fprintf(stderr, "%s: %s (%s)\n", what, error.message, millpond_status_name(status));
    exit(1);
}

static int32_t show_progress(uint64_t done, uint64_t total, void *user_data) {
    (void)user_data;
    fprintf(stderr, "loaded %3.0f %%\n", 100.0 * (double)done / (double)total);
    return 0;
}

static int32_t print_text(const char *text, size_t bytes, void *user_data) {
    (void)user_data;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
    return 0;
}

/* Tokens of a text that grows, and the sum of their logarithmic probabilities. */
typedef struct growing {
    uint32_t tokens[MOST];
    size_t count;
    double logprob;
} growing;

static int32_t note_token(const millpond_token *token, void *user_data) {
    growing *text = user_data;
    if (text->count == MOST) return 1;
    text->tokens[text->count++] = token->id;
    text->logprob += token->logprob;
    return 0;
}

static void add(const millpond_model *model, growing *text, const char *words) {
    size_t count = 0;
    check("tokenize", millpond_tokenize(model, words, strlen(words), 0, text->tokens + text->count, MOST - text->count,
                                        &count, &error));
    text->count += count;
}

static millpond_result go_on(const millpond_engine *engine, millpond_request request, growing *text) {
    millpond_listener listener;
    millpond_listener_init(&listener);
    listener.user_data = text;
    listener.on_text = print_text;
    listener.on_token = note_token;
    request.prompt = text->tokens;
    request.prompt_count = text->count;
    request.temperature = 0;
    request.logprobs = 0;
    millpond_generation *generation = NULL;
    check("start", millpond_generation_start(engine, &request, &generation, &error));
    millpond_result result;
    check("listen", millpond_generation_listen(generation, &listener, &result, &error));
    check("free", millpond_generation_free(generation, &error));
    printf("\n");
    return result;
}

static void as_json(const millpond_model *model, const millpond_engine *engine) {
    growing text = {.count = 0};
    add(model, &text, "Somebody who lives in the pond, as JSON: ");
    millpond_request request;
    millpond_request_init(&request);
    request.json_schema = "{\"type\": \"object\", \"properties\": {\"animal\": {\"enum\": [\"frog\", \"duck\"]}},"
                          " \"required\": [\"animal\"], \"additionalProperties\": false,"
                          " \"x-guidance\": {\"whitespace_flexible\": false}}";
    go_on(engine, request, &text);
}

static void tell_and_save(const millpond_model *model, const millpond_engine *engine) {
    growing text = {.count = 0};
    add(model, &text, "The mill had stood still for a hundred years.");
    millpond_request request;
    millpond_request_init(&request);
    request.max_tokens = 16;
    request.session = "story";
    millpond_result result = go_on(engine, request, &text);
    printf("probability of this answer: e^%.2f\n", text.logprob);
    millpond_session_info saved;
    check("save", millpond_session_save(engine, "story", "evening", &saved, &error));
    printf("saved %zu of %zu tokens as %s\n", saved.tokens, result.prompt_tokens + result.completion_tokens, saved.name);
}

static void restore(const millpond_engine *engine) {
    growing text = {.count = 0};
    check("load", millpond_session_load(engine, "evening", "story", text.tokens, MOST, &text.count, &error));
    millpond_request request;
    millpond_request_init(&request);
    request.max_tokens = 16;
    millpond_result result = go_on(engine, request, &text);
    printf("%zu of %zu tokens did not have to be read again\n", result.cached_tokens, result.prompt_tokens);
    check("delete", millpond_session_delete(engine, "evening", &error));
}

static float *embed(const millpond_model *model, const millpond_engine *engine, const char *words, size_t width) {
    growing text = {.count = 0};
    add(model, &text, words);
    float *values = calloc(width, sizeof *values);
    size_t length = 0;
    check("embed", millpond_embed(engine, text.tokens, text.count, MILLPOND_POOLING_MEAN, values, width, &length, &error));
    return values;
}

static double cosine(const float *a, const float *b, size_t width) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < width; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

static void compare(const millpond_model *model, const millpond_engine *engine) {
    millpond_model_info info;
    check("describe", millpond_model_describe(model, &info, &error));
    float *frog = embed(model, engine, "A frog sat by the pond.", info.embedding);
    float *duck = embed(model, engine, "A duck swam in the pond.", info.embedding);
    printf("a frog is like a duck by %.2f\n", cosine(frog, duck, info.embedding));
    free(frog);
    free(duck);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL FOLDER\n", argv[0]);
        return 2;
    }
    millpond_load_options load;
    millpond_load_options_init(&load);
    load.preload = 1;
    load.progress = show_progress;
    millpond_model *model = NULL;
    check("load", millpond_model_load(argv[1], &load, &model, &error));

    millpond_engine_options options;
    millpond_engine_options_init(&options);
    options.context = 512;
    options.threads = 1;
    options.memory_budget = 256 << 20;
    options.session_dir = argv[2];
    millpond_engine *engine = NULL;
    check("engine", millpond_engine_start(model, &options, &engine, &error));
    as_json(model, engine);
    tell_and_save(model, engine);
    check("stop", millpond_engine_free(engine, &error));

    /* As after a restart. */
    check("engine", millpond_engine_start(model, &options, &engine, &error));
    restore(engine);
    compare(model, engine);
    millpond_stats stats;
    check("stats", millpond_engine_stats(engine, &stats, &error));
    printf("%llu tokens in %llu passes\n", (unsigned long long)stats.generated_tokens, (unsigned long long)stats.steps);
    check("stop", millpond_engine_free(engine, &error));
    check("free", millpond_model_free(model, &error));
    return 0;
}
