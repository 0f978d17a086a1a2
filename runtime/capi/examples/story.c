/* Continues a text with a model: story MODEL [TEXT]
 *
 * cc -I runtime/capi/include runtime/capi/examples/story.c -L target/release -lmillpond_capi -o story
 */
#include <millpond.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints text as it comes, until `left` pieces have been printed. */
static int32_t print_text(const char *text, size_t bytes, void *user_data) {
    int *left = user_data;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
    *left -= 1;
    return *left == 0;
}

static int failed(const char *what, const millpond_error *error) {
    fprintf(stderr, "%s: %s (%s)\n", what, error->message, millpond_status_name(error->status));
    return 1;
}

static int tell(const millpond_model *model, const millpond_engine *engine, const char *text) {
    millpond_error error;
    size_t count = 0;
    millpond_tokenize(model, text, strlen(text), 0, NULL, 0, &count, &error);
    uint32_t *prompt = malloc((count + 1) * sizeof *prompt);
    if (prompt == NULL || millpond_tokenize(model, text, strlen(text), 0, prompt, count, &count, &error) != MILLPOND_STATUS_OK) {
        free(prompt);
        return failed("tokenize", &error);
    }

    millpond_request request;
    millpond_request_init(&request);
    request.prompt = prompt;
    request.prompt_count = count;
    request.max_tokens = 24;
    request.temperature = 0;
    millpond_generation *generation = NULL;
    int32_t status = millpond_generation_start(engine, &request, &generation, &error);
    free(prompt);
    if (status != MILLPOND_STATUS_OK) return failed("start", &error);

    int left = 1000;
    millpond_result result;
    printf("%s", text);
    status = millpond_generation_wait(generation, print_text, &left, &result, &error);
    printf("\n");
    if (status == MILLPOND_STATUS_OK) {
        fprintf(stderr, "%zu tokens read, %zu written\n", result.prompt_tokens, result.completion_tokens);
    } else {
        failed("wait", &error);
    }
    millpond_generation_free(generation, NULL);
    return status != MILLPOND_STATUS_OK;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [TEXT]\n", argv[0]);
        return 2;
    }
    millpond_error error;
    millpond_model *model = NULL;
    if (millpond_model_load(argv[1], NULL, &model, &error) != MILLPOND_STATUS_OK) return failed("load", &error);

    millpond_engine_options options;
    millpond_engine_options_init(&options);
    options.context = 512;
    millpond_engine *engine = NULL;
    int code;
    if (millpond_engine_start(model, &options, &engine, &error) != MILLPOND_STATUS_OK) {
        code = failed("engine", &error);
    } else {
        code = tell(model, engine, argc > 2 ? argv[2] : "The king looked at the dragon and said");
    }
    millpond_engine_free(engine, NULL);
    millpond_model_free(model, NULL);
    return code;
}
