package decodetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"anytime/internal/decode"
)

// patience bounds every wait: far above what any engine needs, so that only a hang meets it.
const patience = 3 * time.Minute

// Conformance holds an engine to the contract of package decode and to the capabilities that it declares. open returns a
// fresh engine, or one that is shared: the suite leaves nothing behind. The engine must decode the same tokens for the same
// prefix when greedy (a test model with exact arithmetic), and must not end by itself within 64 tokens of the prompts; one that
// declares token ids and log-probabilities, but no logit bias, must end at once behind Farewell.
func Conformance(t *testing.T, open func(t *testing.T) decode.Engine) {
	tests := []struct {
		name string
		run  func(*testing.T, decode.Engine)
		need func(decode.Capabilities) bool
	}{
		{"span limit is exact", spanLimit, nil},
		{"spans continue one another", spansContinue, nil},
		{"decoded text read back continues alike", replay, nil},
		{"forced text counts", forcedText, nil},
		{"until ends a span exactly", until, nil},
		{"cut ends a span", cut, nil},
		{"cut of a parked sequence has no effect", cutParked, nil},
		{"forks equal a sequence decoded from scratch", forks, nil},
		{"forks do not disturb their parent", forksUndisturbing, nil},
		{"a fork asked for early waits", forkEarly, nil},
		{"a fork outlives its parent", forkOutlives, nil},
		{"a fork that is never reached says so", forkNotReached, nil},
		{"a fork forks", forkOfFork, nil},
		{"many sequences at once equal one alone", together, nil},
		{"next can be given up and asked again", nextGivenUp, nil},
		{"close ends everything", closing, nil},
		{"bad input is refused and harms nobody", badInput, nil},
		{"what is not declared is refused", undeclared, nil},
		{"tokenize gives the text back", tokenize, nil},
		{"literal text holds no special token", literal, func(c decode.Capabilities) bool { return c.TokenIDs }},
		{"token ids are the prompt", tokenIDs, func(c decode.Capabilities) bool { return c.TokenIDs }},
		{"prefill is reported", prefill, func(c decode.Capabilities) bool { return c.TokenIDs }},
		{"seeds reproduce", seeds, func(c decode.Capabilities) bool { return c.Seed }},
		{"log-probabilities", logProbs, func(c decode.Capabilities) bool { return c.LogProbs }},
		{"the model's own end", endOfGeneration, func(c decode.Capabilities) bool { return c.TokenIDs && c.LogProbs }},
		{"grammar", grammar, func(c decode.Capabilities) bool { return c.Grammar }},
		{"logit bias", logitBias, func(c decode.Capabilities) bool { return c.LogitBias }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := open(t)
			if test.need != nil && !test.need(e.Info().Capabilities) {
				return // not declared; "what is not declared is refused" looks at it
			}
			test.run(t, e)
			ctx, done := context.WithTimeout(context.Background(), patience)
			defer done()
			if err := e.Ready(ctx); err != nil {
				t.Errorf("engine is not ready afterwards: %v", err)
			}
		})
	}
}

const question = "What is one and two? <think>\n"

func openSeq(t *testing.T, e decode.Engine, parts ...decode.Part) decode.Sequence {
	t.Helper()
	if len(parts) == 0 {
		parts = []decode.Part{decode.Text(question)}
	}
	s, err := e.Open(context.Background(), decode.Request{Prompt: parts, Seed: 7})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Read reads a span to its end.
func Read(t *testing.T, s decode.Sequence) ([]decode.Token, decode.End) {
	t.Helper()
	tokens, end, err := read(s)
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	return tokens, end
}

func read(s decode.Sequence) ([]decode.Token, decode.End, error) {
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	var tokens []decode.Token
	for {
		c, err := s.Next(ctx)
		if err != nil {
			return tokens, "", err
		}
		tokens = append(tokens, c.Tokens...)
		if c.End != "" {
			return tokens, c.End, nil
		}
	}
}

func decodeN(t *testing.T, s decode.Sequence, n int) []decode.Token {
	t.Helper()
	if err := s.Decode(decode.Span{MaxTokens: n}); err != nil {
		t.Fatalf("Decode: %v", err)
	}
	tokens, end := Read(t, s)
	if len(tokens) != n || end != decode.EndLimit {
		t.Fatalf("span of %d: %d tokens, end %q", n, len(tokens), end)
	}
	return tokens
}

// Join returns the text of tokens.
func Join(tokens []decode.Token) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString(t.Text)
	}
	return b.String()
}

func same(t *testing.T, what string, got, want []decode.Token) {
	t.Helper()
	if Join(got) != Join(want) || len(got) != len(want) {
		t.Errorf("%s:\n got %d tokens %q\nwant %d tokens %q", what, len(got), Join(got), len(want), Join(want))
	}
}

// back is the part that puts decoded tokens into a prompt.
func back(e decode.Engine, tokens []decode.Token) decode.Part {
	if !e.Info().Capabilities.TokenIDs {
		return decode.Text(Join(tokens))
	}
	ids := make([]int32, len(tokens))
	for i, t := range tokens {
		ids[i] = t.ID
	}
	return decode.Part{IDs: ids}
}

func spanLimit(t *testing.T, e decode.Engine) {
	for _, n := range []int{1, 2, 17, 64} {
		decodeN(t, openSeq(t, e), n)
	}
}

func spansContinue(t *testing.T, e decode.Engine) {
	want := decodeN(t, openSeq(t, e), 24)
	s := openSeq(t, e)
	got := append(decodeN(t, s, 9), decodeN(t, s, 15)...)
	same(t, "9 and 15", got, want)
	s = openSeq(t, e)
	for range 3 { // queued before the first is read
		if err := s.Decode(decode.Span{MaxTokens: 8}); err != nil {
			t.Fatal(err)
		}
	}
	got = nil
	for range 3 {
		tokens, _ := Read(t, s)
		got = append(got, tokens...)
	}
	same(t, "3 × 8", got, want)
}

func replay(t *testing.T, e decode.Engine) {
	want := decodeN(t, openSeq(t, e), 32)
	got := decodeN(t, openSeq(t, e, decode.Text(question), back(e, want[:20])), 12)
	same(t, "from token 20", got, want[20:])
}

func forcedText(t *testing.T, e decode.Engine) {
	const suffix = "\n</think> so the answer is"
	s := openSeq(t, e)
	thought := decodeN(t, s, 10)
	if err := s.Append(decode.Text(suffix)); err != nil {
		t.Fatal(err)
	}
	got := decodeN(t, s, 12)
	want := decodeN(t, openSeq(t, e, decode.Text(question), back(e, thought), decode.Text(suffix)), 12)
	same(t, "after forced text", got, want)
	if Join(got) == Join(decodeN(t, openSeq(t, e, decode.Text(question), back(e, thought)), 12)) {
		t.Errorf("forced text changed nothing: %q", Join(got))
	}
}

func until(t *testing.T, e decode.Engine) {
	reference := decodeN(t, openSeq(t, e), 24)
	// The first stretch of two tokens that does not occur earlier.
	for i := 6; i+2 <= len(reference); i++ {
		stop := Join(reference[i : i+2])
		if strings.Contains(Join(reference[:i+1]), stop) {
			continue
		}
		n := i + 2
		for strings.HasSuffix(Join(reference[:n-1]), stop) {
			n--
		}
		s := openSeq(t, e)
		if err := s.Decode(decode.Span{MaxTokens: 24, Until: []string{"never said \x01", stop}}); err != nil {
			t.Fatal(err)
		}
		got, end := Read(t, s)
		if end != decode.EndUntil {
			t.Errorf("end %q, want %q", end, decode.EndUntil)
		}
		same(t, "until "+stop, got, reference[:n])
		return
	}
	t.Fatalf("no stop text in %q", Join(reference))
}

func cut(t *testing.T, e decode.Engine) {
	const long = 2000
	s := openSeq(t, e)
	if err := s.Decode(decode.Span{MaxTokens: long}); err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	var got []decode.Token
	for len(got) == 0 {
		c, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.Tokens...)
		if c.End != "" {
			t.Fatalf("ended with %q before it was cut", c.End)
		}
	}
	s.Cut()
	rest, end := Read(t, s)
	got = append(got, rest...)
	if end != decode.EndCut || len(got) >= long {
		t.Fatalf("end %q after %d tokens, want %q before %d", end, len(got), decode.EndCut, long)
	}
	n := min(len(got), 32)
	got = append(got, decodeN(t, s, 5)...)
	want := decodeN(t, openSeq(t, e), n)
	same(t, "before the cut", got[:n], want)
}

func cutParked(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	decodeN(t, s, 3)
	s.Cut()
	decodeN(t, s, 5)
}

func fork(t *testing.T, s decode.Sequence, after int) decode.Sequence {
	t.Helper()
	f, err := s.Fork(after, decode.ForkOptions{Seed: 7})
	if err != nil {
		t.Fatalf("Fork: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

const suffix = "\n</think> answer:"

func closeAndDecode(t *testing.T, f decode.Sequence, n int) {
	t.Helper()
	if err := f.Append(decode.Text(suffix)); err != nil {
		t.Fatal(err)
	}
	if err := f.Decode(decode.Span{MaxTokens: n}); err != nil {
		t.Fatal(err)
	}
}

func forks(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	thought := decodeN(t, s, 40)
	for _, after := range []int{0, 1, 13, 39, 40, decode.Head} {
		f := fork(t, s, after)
		closeAndDecode(t, f, 16)
		got, _ := Read(t, f)
		n := after
		if after == decode.Head {
			n = len(thought)
		}
		want := decodeN(t, openSeq(t, e, decode.Text(question), back(e, thought[:n]), decode.Text(suffix)), 16)
		same(t, "fork", got, want)
	}
}

func forksUndisturbing(t *testing.T, e decode.Engine) {
	want := decodeN(t, openSeq(t, e), 60)
	s := openSeq(t, e)
	var taken []decode.Sequence
	for after := 10; after <= 50; after += 10 {
		f := fork(t, s, after)
		closeAndDecode(t, f, 8)
		taken = append(taken, f)
	}
	got := decodeN(t, s, 60)
	same(t, "parent", got, want)
	for _, f := range taken {
		if tokens, end := Read(t, f); len(tokens) != 8 {
			t.Errorf("fork decoded %d tokens, end %q", len(tokens), end)
		}
	}
}

func forkEarly(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	f := fork(t, s, 12)
	closeAndDecode(t, f, 10)
	thought := decodeN(t, s, 8)
	thought = append(thought, decodeN(t, s, 8)...) // reached in the second span
	got, _ := Read(t, f)
	want := decodeN(t, openSeq(t, e, decode.Text(question), back(e, thought[:12]), decode.Text(suffix)), 10)
	same(t, "fork", got, want)
}

func forkOutlives(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	thought := decodeN(t, s, 20)
	f := fork(t, s, decode.Head)
	closeAndDecode(t, f, 4)
	first, _ := Read(t, f)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := slices.Concat(first, decodeN(t, f, 12))
	want := decodeN(t, openSeq(t, e, decode.Text(question), back(e, thought), decode.Text(suffix)), 16)
	same(t, "fork", got, want)
}

func forkNotReached(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	f := fork(t, s, 100)
	closeAndDecode(t, f, 4)
	decodeN(t, s, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(f); !errors.Is(err, decode.ErrNotReached) {
		t.Errorf("error %v, want %v", err, decode.ErrNotReached)
	}
}

func forkOfFork(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	thought := decodeN(t, s, 10)
	f := fork(t, s, decode.Head)
	more := decodeN(t, f, 6)
	g := fork(t, f, 3)
	closeAndDecode(t, g, 8)
	got, _ := Read(t, g)
	want := decodeN(t, openSeq(t, e, decode.Text(question), back(e, slices.Concat(thought, more[:3])), decode.Text(suffix)), 8)
	same(t, "fork of a fork", got, want)
}

func together(t *testing.T, e decode.Engine) {
	prompts := []string{question, "Name a colour. <think>\n", "Count to ten. <think>\n", question}
	want := make([][]decode.Token, len(prompts))
	for i, p := range prompts {
		want[i] = decodeN(t, openSeq(t, e, decode.Text(p)), 40)
	}
	got := make([][]decode.Token, len(prompts))
	var wg sync.WaitGroup
	for i, p := range prompts {
		s := openSeq(t, e, decode.Text(p))
		if err := s.Decode(decode.Span{MaxTokens: 40}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			var err error
			if got[i], _, err = read(s); err != nil {
				t.Errorf("Next: %v", err)
			}
		})
	}
	wg.Wait()
	for i := range prompts {
		same(t, prompts[i], got[i], want[i])
	}
}

func nextGivenUp(t *testing.T, e decode.Engine) {
	want := decodeN(t, openSeq(t, e), 30)
	s := openSeq(t, e)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Decode(decode.Span{MaxTokens: 30}); err != nil {
		t.Fatal(err)
	}
	var got []decode.Token
	for range 5 {
		if c, err := s.Next(gone); err == nil { // what is there may be returned all the same
			got = append(got, c.Tokens...)
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want %v", err, context.Canceled)
		}
	}
	if len(got) < 30 {
		rest, _ := Read(t, s)
		got = append(got, rest...)
	}
	same(t, "after giving up", got, want)
}

func closing(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	if err := s.Decode(decode.Span{MaxTokens: 1 << 14}); err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	waiting := make(chan error, 1)
	go func() {
		for {
			if _, err := s.Next(ctx); err != nil {
				waiting <- err
				return
			}
		}
	}()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := <-waiting; !errors.Is(err, decode.ErrClosed) {
		t.Errorf("Next during Close: %v", err)
	}
	if err := s.Decode(decode.Span{MaxTokens: 1}); !errors.Is(err, decode.ErrClosed) {
		t.Errorf("Decode: %v", err)
	}
	if err := s.Append(decode.Text("x")); !errors.Is(err, decode.ErrClosed) {
		t.Errorf("Append: %v", err)
	}
	if _, err := s.Fork(decode.Head, decode.ForkOptions{}); !errors.Is(err, decode.ErrClosed) {
		t.Errorf("Fork: %v", err)
	}
	s.Cut()
	s.SetPriority(decode.Priority{})
}

func refused(t *testing.T, what string, err error) {
	t.Helper()
	var input *decode.InputError
	if !errors.As(err, &input) {
		t.Errorf("%s: error %v, want an InputError", what, err)
	} else if input.Field == "" || input.Reason == "" {
		t.Errorf("%s: error says too little: %q", what, err)
	}
}

func badInput(t *testing.T, e decode.Engine) {
	ctx := context.Background()
	bystander := openSeq(t, e)
	if err := bystander.Decode(decode.Span{MaxTokens: 30}); err != nil {
		t.Fatal(err)
	}
	prompts := map[string][]decode.Part{
		"no prompt":     nil,
		"empty prompt":  {decode.Text("")},
		"NUL byte":      {decode.Text("a\x00b")},
		"invalid UTF-8": {decode.Text("a\xffb")},
	}
	if e.Info().Capabilities.TokenIDs {
		prompts["negative token id"] = []decode.Part{{IDs: []int32{-1}}}
		prompts["token id out of range"] = []decode.Part{{IDs: []int32{1 << 30}}}
	}
	for what, parts := range prompts {
		s, err := e.Open(ctx, decode.Request{Prompt: parts})
		refused(t, what, err)
		if s != nil {
			_ = s.Close()
		}
	}
	if n := e.Info().ContextTokens; n > 0 && n <= 1<<16 {
		if _, err := e.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text(strings.Repeat("a b ", n))}}); !errors.Is(err, decode.ErrContextFull) {
			t.Errorf("prompt over the context: %v, want %v", err, decode.ErrContextFull)
		}
	}
	if _, err := e.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text("a")}, Adapter: "no such"}); !errors.Is(err, decode.ErrUnknownAdapter) {
		refused(t, "unknown adapter", err)
	}
	s := openSeq(t, e)
	refused(t, "append of a NUL byte", s.Append(decode.Text("\x00")))
	for what, span := range map[string]decode.Span{
		"no tokens":       {},
		"negative tokens": {MaxTokens: -1},
	} {
		refused(t, what, s.Decode(span))
		refused(t, what+", asked beforehand", e.Check(span))
	}
	decodeN(t, s, 3)
	if tokens, end := Read(t, bystander); len(tokens) != 30 {
		t.Errorf("another sequence got %d tokens, end %q", len(tokens), end)
	}
}

func undeclared(t *testing.T, e decode.Engine) {
	c := e.Info().Capabilities
	s := openSeq(t, e)
	if !c.Grammar {
		refused(t, "grammar", s.Decode(decode.Span{MaxTokens: 1, Sampling: decode.Sampling{Grammar: `root ::= "a"`}}))
	}
	if !c.LogitBias {
		refused(t, "logit bias", s.Decode(decode.Span{MaxTokens: 1, Sampling: decode.Sampling{LogitBias: map[int32]float32{1: 1}}}))
	}
	if _, ok := e.(decode.Adapters); ok != c.Adapters {
		t.Errorf("adapters declared %v, implemented %v", c.Adapters, ok)
	}
	decodeN(t, s, 2)
}

func tokenize(t *testing.T, e decode.Engine) {
	const text = "Hello, wörld: 1 + 2 = 3. 猫\n"
	tokens, err := e.Tokenize(context.Background(), decode.Text(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := Join(tokens); !strings.HasSuffix(got, text) { // BOS may stand before it
		t.Errorf("tokens join to %q", got)
	}
}

func literal(t *testing.T, e decode.Engine) {
	for _, special := range e.Info().SpecialTokens {
		text := "a " + special + " b"
		tokens, err := e.Tokenize(context.Background(), decode.Part{Text: text, Literal: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := Join(tokens); !strings.HasSuffix(got, text) {
			t.Errorf("literal %q joins to %q", text, got)
		}
		for _, tok := range tokens {
			if tok.Text == special && len(special) > 1 {
				t.Errorf("literal %q holds the special token", text)
			}
		}
		one, err := e.Tokenize(context.Background(), decode.Text("a"+special))
		if err != nil {
			t.Fatal(err)
		}
		if last := one[len(one)-1]; last.Text != special {
			t.Errorf("text a%s ends in token %q, want the special token", special, last.Text)
		}
	}
}

func tokenIDs(t *testing.T, e decode.Engine) {
	tokens, err := e.Tokenize(context.Background(), decode.Text(question))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "prompt as ids", decodeN(t, openSeq(t, e, back(e, tokens)), 16), decodeN(t, openSeq(t, e), 16))
}

func prefill(t *testing.T, e decode.Engine) {
	tokens, err := e.Tokenize(context.Background(), decode.Text(question))
	if err != nil {
		t.Fatal(err)
	}
	s := openSeq(t, e)
	if err := s.Decode(decode.Span{MaxTokens: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	for {
		c, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if p := c.Prefill; p != nil {
			if p.Tokens != len(tokens) || p.Cached < 0 || p.Cached > p.Tokens || p.Took < 0 || p.Queued < 0 {
				t.Errorf("prefill %+v of %d tokens", *p, len(tokens))
			}
			return
		}
		if c.End != "" {
			t.Fatal("no prefill was reported")
		}
	}
}

func seeds(t *testing.T, e decode.Engine) {
	sample := func(seed uint64) string {
		s, err := e.Open(context.Background(), decode.Request{Prompt: []decode.Part{decode.Text(question)}, Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Decode(decode.Span{MaxTokens: 24, MinTokens: 24, Sampling: decode.Sampling{Temperature: 1}}); err != nil {
			t.Fatal(err)
		}
		tokens, _ := Read(t, s)
		return Join(tokens)
	}
	distinct := map[string]bool{}
	for seed := range uint64(4) {
		a, b := sample(seed), sample(seed)
		if a != b {
			t.Errorf("seed %d gave %q, then %q", seed, a, b)
		}
		distinct[a] = true
	}
	if len(distinct) < 3 {
		t.Errorf("4 seeds gave %d texts", len(distinct))
	}
}

func logProbs(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	if err := s.Decode(decode.Span{MaxTokens: 8, TopLogProbs: 3}); err != nil {
		t.Fatal(err)
	}
	tokens, _ := Read(t, s)
	for _, tok := range tokens {
		if tok.LogProb > 0 || len(tok.Top) == 0 || len(tok.Top) > 3 {
			t.Errorf("token %q: log-prob %v, %d candidates", tok.Text, tok.LogProb, len(tok.Top))
			continue
		}
		if tok.Top[0].ID != tok.ID || tok.Top[0].LogProb != tok.LogProb {
			t.Errorf("greedy token %d (%v) is not the likeliest, %+v", tok.ID, tok.LogProb, tok.Top[0])
		}
		if !slices.IsSortedFunc(tok.Top, func(a, b decode.TokenProb) int {
			if a.LogProb > b.LogProb {
				return -1
			}
			return 1
		}) {
			t.Errorf("candidates are not sorted: %+v", tok.Top)
		}
	}
	refused(t, "too many candidates", s.Decode(decode.Span{MaxTokens: 1, TopLogProbs: 21}))
}

// Farewell is a prompt behind which there is nothing to say.
const Farewell = "Good night. <think>\n"

func endOfGeneration(t *testing.T, e decode.Engine) {
	eos, err := e.Tokenize(context.Background(), decode.Text("a"+e.Info().EOS))
	if err != nil {
		t.Fatal(err)
	}
	end := eos[len(eos)-1].ID
	s := openSeq(t, e, decode.Text(Farewell))
	span := decode.Span{MaxTokens: 8}
	if e.Info().Capabilities.LogitBias {
		span.Sampling.LogitBias = map[int32]float32{end: 1000}
	}
	if err := s.Decode(span); err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	var c decode.Chunk
	for c.End == "" {
		if c, err = s.Next(ctx); err != nil {
			t.Fatal(err)
		}
		if len(c.Tokens) > 0 {
			t.Fatalf("%d tokens, the first %q, where the model ends at once", len(c.Tokens), c.Tokens[0].Text)
		}
	}
	if c.End != decode.EndEOG || c.EOG == nil || c.EOG.ID != end || !(c.EOG.LogProb <= 0) {
		t.Fatalf("end %q by token %+v, want %q by %d", c.End, c.EOG, decode.EndEOG, end)
	}
	more := func(s decode.Sequence) []decode.Token {
		if err := s.Decode(decode.Span{MaxTokens: 8, MinTokens: 8}); err != nil {
			t.Fatal(err)
		}
		tokens, _ := Read(t, s)
		return tokens
	}
	same(t, "behind an end that was not kept", more(s), more(openSeq(t, e, decode.Text(Farewell))))
}

func grammar(t *testing.T, e decode.Engine) {
	s := openSeq(t, e)
	g := decode.Sampling{Grammar: "root ::= (\"yes\" | \"no\") \".\"\n"}
	if err := s.Decode(decode.Span{MaxTokens: 20, Sampling: g}); err != nil {
		t.Fatal(err)
	}
	tokens, end := Read(t, s)
	if text := Join(tokens); text != "yes." && text != "no." || end != decode.EndGrammar && end != decode.EndEOG {
		t.Errorf("text %q, end %q", text, end)
	}
	decodeN(t, s, 3) // free again
	for _, bad := range []string{"root ::= (", "x ::= \"a\"", "root ::= y", strings.Repeat("(", 1<<20)} {
		span := decode.Span{MaxTokens: 2, Sampling: decode.Sampling{Grammar: bad}}
		refused(t, "grammar "+bad[:min(len(bad), 20)], s.Decode(span))
		refused(t, "grammar "+bad[:min(len(bad), 20)]+", asked beforehand", e.Check(span))
	}
}

func logitBias(t *testing.T, e decode.Engine) {
	first := decodeN(t, openSeq(t, e), 1)[0]
	s := openSeq(t, e)
	if err := s.Decode(decode.Span{MaxTokens: 20, Sampling: decode.Sampling{LogitBias: map[int32]float32{first.ID: -100}}}); err != nil {
		t.Fatal(err)
	}
	tokens, _ := Read(t, s)
	for _, tok := range tokens {
		if tok.ID == first.ID {
			t.Errorf("forbidden token %d was decoded", first.ID)
		}
	}
}
