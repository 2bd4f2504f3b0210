package server

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
)

// wish is one field's word on how long to think.
type wish struct {
	field  string
	value  string // as it was given
	tokens int    // or budget.Unlimited
}

func (w wish) String() string {
	if w.value == strconv.Itoa(w.tokens) {
		return fmt.Sprintf("%s (%s)", w.field, w.value)
	}
	tokens := strconv.Itoa(w.tokens) + " thinking tokens"
	if w.tokens == budget.Unlimited {
		tokens = "no limit"
	}
	return fmt.Sprintf("%s (%s: %s)", w.field, w.value, tokens)
}

// wishes gathers what the budget fields of a request say, each in the words of another server.
type wishes struct {
	efforts  map[string]float64
	cap      func() (int, error) // of the model's thinking
	tokens   []wish
	deadline wish // value "" none
	budget   budget.Budget
	on, off  []wish // switches
	effort   string
	err      error
}

// readBudget finds the one budget that the fields and the Budget header agree on. Fields that disagree, or have a bad value, are an
// error that names them.
func (s *Server) readBudget(f api.BudgetFields, header string, model string) (budget.Budget, prompt.Options, error) {
	w := wishes{efforts: s.cfg.Efforts, cap: func() (int, error) {
		m, err := s.findModel(model)
		return m.MaxThinking, err
	}}
	w.addTokens("thinking_token_budget", f.ThinkingTokenBudget)
	w.addTokens("thinking_budget_tokens", f.ThinkingBudgetTokens)
	w.addTokens("reasoning_budget_tokens", f.ReasoningBudgetTokens)
	w.addTokens("thinking_budget", f.ThinkingBudget)
	w.addTokens("max_thinking_tokens", f.MaxThinkingTokens)
	if v := f.Nvext; v != nil {
		w.addTokens("nvext.max_thinking_tokens", v.MaxThinkingTokens)
	}
	if v := f.CustomParams; v != nil {
		w.addTokens("custom_params.thinking_budget", v.ThinkingBudget)
	}
	if v := f.Reasoning; v != nil {
		w.addTokens("reasoning.max_tokens", v.MaxTokens)
		w.addEffort("reasoning.effort", v.Effort)
		w.addSwitch("reasoning.enabled", v.Enabled)
	}
	w.addEffort("reasoning_effort", f.ReasoningEffort)
	if v := f.Thinking; v != nil {
		w.addTokens("thinking.budget_tokens", v.BudgetTokens)
		if v.Type != nil {
			w.addSwitch("thinking.type", new(*v.Type != api.BudgetFieldsThinkingTypeDisabled))
		}
	}
	if v := f.Think; v != nil {
		if v.Effort != "" {
			w.addEffort("think", &v.Effort)
		} else {
			w.addSwitch("think", &v.On)
		}
	}
	w.addSwitch("enable_thinking", f.EnableThinking)
	options := prompt.Options{Thinking: true}
	if v := f.ChatTemplateKwargs; v != nil {
		w.addTokens("chat_template_kwargs.thinking_budget", v.ThinkingBudget)
		w.addEffort("chat_template_kwargs.reasoning_effort", v.ReasoningEffort)
		w.addSwitch("chat_template_kwargs.enable_thinking", v.EnableThinking)
		w.addSwitch("chat_template_kwargs.thinking", v.Thinking)
		options.Kwargs = v.AdditionalProperties
	}
	w.addBudget("budget", (*string)(f.Budget))
	if header != "" {
		w.addBudget("the Budget header", &header)
	}
	b, err := w.agree()
	options.Thinking = len(w.off) == 0 && b.Tokens != 0 // a model that knows how to answer at once is asked to
	options.Effort = w.effort
	return b, options, err
}

func (w *wishes) addTokens(field string, tokens *int) {
	if tokens != nil {
		w.tokens = append(w.tokens, wish{field, strconv.Itoa(*tokens), *tokens})
	}
}

func (w *wishes) addSwitch(field string, on *bool) {
	switch {
	case on == nil:
	case *on:
		w.on = append(w.on, wish{field: field, value: "on"})
	default:
		off := wish{field, "off", 0}
		w.off = append(w.off, off)
		w.tokens = append(w.tokens, off)
	}
}

func (w *wishes) addEffort(field string, level *string) {
	if level == nil || w.err != nil {
		return
	}
	share, ok := w.efforts[*level]
	if !ok {
		byShare := func(a, b string) int { return cmp.Compare(w.efforts[a], w.efforts[b]) }
		levels := slices.SortedStableFunc(maps.Keys(w.efforts), func(a, b string) int { return cmp.Or(byShare(a, b), cmp.Compare(a, b)) })
		w.err = invalid(field, "%s: %.32q is no effort; there are %s", field, *level, strings.Join(levels, ", "))
		return
	}
	e := wish{field, *level, budget.Unlimited}
	switch {
	case share == 0:
		e.tokens = 0
		w.off = append(w.off, e)
	case share < 1:
		limit, err := w.cap()
		if err != nil {
			w.err = err
			return
		}
		e.tokens = max(1, int(math.Round(share*float64(limit))))
	}
	w.tokens = append(w.tokens, e)
	if slices.Contains([]string{"low", "medium", "high"}, *level) { // what chat templates know
		w.effort = *level
	}
}

func (w *wishes) addBudget(field string, text *string) {
	if text == nil || w.err != nil {
		return
	}
	b, err := budget.Parse(*text)
	if err != nil {
		w.err = err
		return
	}
	if b.Deadline > 0 {
		if w.deadline.value != "" && w.budget.Deadline != b.Deadline {
			w.err = conflict(w.deadline.field, fmt.Sprintf("%s (%s) and %s (%s)", w.deadline.field, w.deadline.value, field, *text))
			return
		}
		w.deadline = wish{field: field, value: *text}
		w.budget.Deadline = b.Deadline
	}
	if b.Tokens != budget.Unlimited || b.Deadline == 0 {
		w.tokens = append(w.tokens, wish{field, *text, b.Tokens})
	}
}

func conflict(param, both string) error {
	return &httpError{status: 400, kind: typeRequest, code: "conflict", param: param, message: both + " disagree on how long to think; give one of them"}
}

func (w *wishes) agree() (budget.Budget, error) {
	if w.err != nil {
		return budget.Budget{}, w.err
	}
	b := budget.Budget{Tokens: budget.Unlimited, Deadline: w.budget.Deadline}
	if len(w.tokens) == 0 {
		return b, nil
	}
	first := w.tokens[0]
	for _, other := range w.tokens[1:] {
		if other.tokens != first.tokens {
			return b, conflict(first.field, fmt.Sprintf("%v and %v", first, other))
		}
	}
	if first.tokens == 0 && len(w.on) > 0 {
		return b, conflict(first.field, fmt.Sprintf("%v and %s (on)", first, w.on[0].field))
	}
	b.Tokens = first.tokens
	return b, nil
}

// sampling is the request's, with the server's defaults.
func (s *Server) sampling(temperature, topP, minP *float32, topK *int, bias *api.LogitBias, grammar *string) (decode.Sampling, error) {
	d := s.cfg.Sampling
	v := decode.Sampling{
		Temperature: or(temperature, d.Temperature), TopP: or(topP, d.TopP), MinP: or(minP, d.MinP),
		TopK: max(0, or(topK, d.TopK)), Grammar: or(grammar, ""),
	}
	for text, b := range or(bias, nil) {
		id, err := strconv.ParseInt(text, 10, 32)
		if err != nil || id < 0 {
			return v, invalid("logit_bias", "logit_bias: %.32q is not the id of a token", text)
		}
		if v.LogitBias == nil {
			v.LogitBias = map[int32]float32{}
		}
		v.LogitBias[int32(id)] = b
	}
	return v, nil
}

// messages turns the contract's messages into the prompt's.
func messages(list []api.Message) ([]prompt.Message, error) {
	out := make([]prompt.Message, len(list))
	for i, m := range list {
		out[i] = prompt.Message{
			Role: string(m.Role), Content: string(or(m.Content, "")), Name: or(m.Name, ""), ToolCallID: or(m.ToolCallId, ""),
			Reasoning: or(m.ReasoningContent, or(m.Reasoning, "")),
		}
		for _, t := range or(m.ToolCalls, nil) {
			out[i].ToolCalls = append(out[i].ToolCalls, prompt.ToolCall{ID: or(t.Id, ""), Name: t.Function.Name, Arguments: t.Function.Arguments})
		}
		if m.Content == nil && len(out[i].ToolCalls) == 0 && m.Role != api.MessageRoleAssistant {
			field := fmt.Sprintf("messages[%d].content", i)
			return nil, invalid(field, "%s: is missing", field)
		}
	}
	return out, nil
}

// seed of the n-th completion of a request, so that n of them are not all the same.
func seed(given *int64, n int) *uint64 {
	if given == nil {
		return nil
	}
	return new(uint64(*given) + uint64(n))
}

// or returns what a pointer points to, or a default.
func or[T any](p *T, d T) T {
	if p == nil {
		return d
	}
	return *p
}

func has(p *bool) bool { return or(p, false) }

// findModel finds the model that a request names.
func (s *Server) findModel(name string) (Model, error) {
	for _, m := range s.cfg.Models.Models() {
		if (name == "" || name == "default") && m.Default || name == m.ID {
			return m, nil
		}
		if adapter, ok := strings.CutPrefix(name, m.ID+":"); ok && (adapter == catalog.Bare || slices.Contains(m.Adapters, adapter)) {
			return m, nil
		}
	}
	return Model{}, anytime.ErrUnknownModel
}
