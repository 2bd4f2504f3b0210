// Package ollama decodes with a model that an Ollama server holds, so that budgets, checkpoints, votes, interrupts and extensions work on
// an engine that has no thinking budget of its own.
//
// The model: package remote keeps the sequences; here a completion is one POST /api/generate in raw mode with the exact text so far.
// A cut cancels the request, a fork sends the text up to its position with the closing suffix behind it, and Ollama's own
// prefix cache makes both cheap. By default an Ollama decodes one request for each model at a time (OLLAMA_NUM_PARALLEL=1). Then an
// answer pauses the thought, and the thought goes on behind it in the cache that both share.
//
// The chat template: Ollama shows a model's Go template or the name of a renderer that is built into it, but never the GGUF's Jinja. So it is
// asked to render a few short chats (_debug_render_only), and from what it puts around the messages a Jinja template is made that
// does the same (see template.go). Tools are not in it.
//
// Tokens: each streamed message is one token, but for halves of a rune, which come together. num_predict is exact, and eval_count
// at the end says what was missed, so a span that ends by its limit has exactly that many tokens; in a span that is cut they are
// counted as they came. Only text can be sent: a prefix is tokenized again, which may give other tokens for the same text.
// Log-probabilities are asked for where they are used: in answers (decode.ClassAnswer), and with TopLogProbs.
//
// Ollama gives up without a word when a model says the same token 31 times; the thought goes on, and package budget finds the loop.
//
// An adapter becomes a model of its own in Ollama, anytime/BASE--NAME, made of the base and the LoRA's GGUF, and is still there after a
// restart. Ollama loads it beside the base: it costs the base's memory once more.
package ollama
