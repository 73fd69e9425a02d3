package llm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/terraphim/tgr"
)

// scripted is a Client as a function: the smallest backend there is.
type scripted struct {
	model Model
	chat  func(ctx context.Context, q Query) (Answer, error)
}

func (s scripted) Model(context.Context) (Model, error) { return s.model, nil }

func (s scripted) Chat(ctx context.Context, q Query) (Answer, error) { return s.chat(ctx, q) }

func anyAnswer(string) error { return nil }

// The breaker opens after three failures, lets one question through after half a minute, waits twice as long when that
// fails, and closes when one succeeds.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, works := 0, false
		s := New(Config{Clients: []Client{scripted{chat: func(context.Context, Query) (Answer, error) {
			if asked++; works {
				return Answer{Text: "{}"}, nil
			}
			return Answer{}, faultf(Unreachable, "gone")
		}}}})
		n := 0
		ask := func() Reason {
			n++
			_, err := s.ask(t.Context(), task{kind: "parse", data: strings.Repeat("x", n), check: anyAnswer, trusted: true})
			if err == nil {
				return "ok"
			}
			return asFault(err).Reason
		}
		expect := func(want Reason, total int) {
			t.Helper()
			if got := ask(); got != want || asked != total {
				t.Fatalf("%s after %d requests, want %s after %d", got, asked, want, total)
			}
		}
		expect(Unreachable, 1)
		expect(Unreachable, 2)
		expect(Unreachable, 3)
		expect(Breaker, 3)
		time.Sleep(29 * time.Second)
		expect(Breaker, 3)
		time.Sleep(2 * time.Second)
		expect(Unreachable, 4) // the probe
		expect(Breaker, 4)
		time.Sleep(31 * time.Second)
		expect(Breaker, 4) // twice as long
		time.Sleep(30 * time.Second)
		works = true
		expect("ok", 5)
		expect("ok", 6)
	})
}

// A backend that says how long to wait is left alone for as long; one that refuses for ten minutes.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		fault *Fault
		wait  time.Duration
	}{{&Fault{Reason: Busy, RetryAfter: 7 * time.Second}, 7 * time.Second}, {&Fault{Reason: Refused}, 10 * time.Minute}} {
		synctest.Test(t, func(t *testing.T) {
			var b breaker
			b.done(time.Now(), tt.fault)
			time.Sleep(tt.wait - time.Second)
			if b.allow(time.Now()) == nil {
				t.Errorf("%s: allowed too early", tt.fault.Reason)
			}
			time.Sleep(2 * time.Second)
			if f := b.allow(time.Now()); f != nil {
				t.Errorf("%s: %v", tt.fault.Reason, f)
			}
		})
	}
}

// The deadline follows what was measured; what would take too long is not asked.
func TestDeadline(t *testing.T) {
	var s speed
	if d, ok := s.deadline(1000, 100, time.Minute); !ok || d != time.Minute {
		t.Errorf("unmeasured: %s %t", d, ok)
	}
	s.learn(Answer{PromptTokens: 100, Prompt: time.Second, OutputTokens: 50, Generate: 5 * time.Second, Load: 2 * time.Second}, 400) // 100 and 10 tokens/s, 4 bytes each
	// 4000 bytes are 1000 tokens: 10 s; 100 tokens out: 10 s; loading: 2 s. Half as much again: 33 s.
	if d, ok := s.deadline(4000, 100, time.Minute); !ok || d != 33*time.Second {
		t.Errorf("%s %t, want 33 s", d, ok)
	}
	if _, ok := s.deadline(4000, 600, time.Minute); ok {
		t.Error("72 s fit into a minute")
	}
	if d, _ := s.deadline(4, 1, time.Minute); d != shortest {
		t.Errorf("%s, want the shortest", d)
	}
}

func TestTooSlowIsNotAsked(t *testing.T) {
	asked := 0
	s := New(Config{Limit: 20 * time.Second, Clients: []Client{scripted{chat: func(context.Context, Query) (Answer, error) {
		asked++
		return Answer{Text: "{}", OutputTokens: 10, Generate: 10 * time.Second}, nil // one token a second
	}}}})
	for i, want := range []string{"ok", "too_slow"} {
		_, err := s.ask(t.Context(), task{kind: "parse", data: strings.Repeat("x", i), output: 100, check: anyAnswer, trusted: true})
		if got := outcomeOf(err); got != want {
			t.Errorf("question %d: %s, want %s", i, got, want)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return string(asFault(err).Reason)
}

// Many who ask the same at once are one question; the answer is kept, over restarts too, until the model is another.
func TestSingleFlightAndCache(t *testing.T) {
	dir := t.TempDir()
	var asked atomic.Int32
	model := Model{Backend: "ollama", Name: "m", Digest: "1"}
	start := func() *Service {
		return New(Config{Dir: dir, Clients: []Client{scripted{model: model, chat: func(context.Context, Query) (Answer, error) {
			asked.Add(1)
			time.Sleep(10 * time.Millisecond) // long enough for the others to come
			return Answer{Text: `{"a":1}`}, nil
		}}}})
	}
	q := task{kind: "parse", data: "x", check: anyAnswer, trusted: true}
	s := start()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if r, err := s.ask(t.Context(), q); err != nil || r.text != `{"a":1}` {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	wg.Wait()
	if r, err := start().ask(t.Context(), q); err != nil || !r.cached {
		t.Errorf("after a restart: %+v, %v", r, err)
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times, want once", asked.Load())
	}
	model.Digest = "2"
	if r, err := start().ask(t.Context(), q); err != nil || r.cached || asked.Load() != 2 {
		t.Errorf("another model: %+v, %v, asked %d times", r, err, asked.Load())
	}
	// What a file holds is checked as an answer is.
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(`{"text":"poison"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q.check = func(s string) error {
		if s == "poison" {
			return errors.New("poison")
		}
		return nil
	}
	if r, err := start().ask(t.Context(), q); err != nil || r.text == "poison" {
		t.Errorf("a poisoned file: %+v, %v", r, err)
	}
}

// A question that failed for a fault of its own is not asked again for a while; the backend is not blamed.
func TestInvalidIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := New(Config{Clients: []Client{scripted{chat: func(context.Context, Query) (Answer, error) {
			asked++
			return Answer{Text: "nonsense"}, nil
		}}}})
		p := fixturePlan("x", 1, 1)
		for range 5 {
			if got := s.Parse(t.Context(), p); got.Reason != string(Invalid) {
				t.Fatal(got.Reason)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		time.Sleep(failureKept + time.Second)
		s.Parse(t.Context(), p)
		if got := s.Parse(t.Context(), fixturePlan("y", 1, 1)); asked != 3 || got.Reason != string(Invalid) {
			t.Errorf("asked %d times, %s", asked, got.Reason)
		}
	})
}

// The second backend is asked where the first cannot answer; events account for all of it.
func TestSecondBackend(t *testing.T) {
	p := fixturePlan("x", 2, 2)
	var events []Event
	s := New(Config{Observe: func(e Event) { events = append(events, e) }, Clients: []Client{
		scripted{model: Model{Backend: "ollama"}, chat: func(context.Context, Query) (Answer, error) { return Answer{}, faultf(Busy, "") }},
		scripted{model: Model{Backend: "openrouter", Name: "m", Cloud: true}, chat: func(context.Context, Query) (Answer, error) {
			return Answer{Text: agree(p), PromptTokens: 9, OutputTokens: 8, Cost: 0.1}, nil
		}},
	}})
	got := s.Parse(t.Context(), p)
	if got.By != tgr.ByModel || got.Model != "openrouter/m" {
		t.Fatalf("%+v", got)
	}
	if len(events) != 2 || events[0].Outcome != "busy" || events[1].Outcome != "ok" || events[1].PromptTokens != 9 || events[1].Cost != 0.1 {
		t.Errorf("events: %+v", events)
	}
	if s.Parse(t.Context(), p); events[len(events)-1].Outcome != "cached" {
		t.Errorf("events: %+v", events)
	}
}

// Strip leaves nothing that is not seen, and does it once and for all.
func FuzzStrip(f *testing.F) {
	for _, s := range []string{"\x1b[31mred\x1b[0m", "\u202eabc", "a\r\nb\rc", "\x1b]8;;http://x\x07y", "\xff\xfe", "\U000e0041", "plain"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Strip(s)
		if again := Strip(got); again != got {
			t.Errorf("%q becomes %q and then %q", s, got, again)
		}
		if i := strings.IndexFunc(got, func(r rune) bool {
			return r < 32 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e
		}); i >= 0 {
			t.Errorf("%q keeps a control at %d", got, i)
		}
	})
}

// FuzzDecode: whatever a model says is taken apart or refused, and a fence holds whatever is in it.
func FuzzDecode(f *testing.F) {
	f.Add(agree(fixturePlan("x", 1, 2)))
	f.Add(`{"claims":[{"lines":[1],"cause":"x","fix":"y"}]}`)
	f.Add("{")
	s := New(Config{})
	p := fixturePlan("x", 2, 2)
	f.Fuzz(func(t *testing.T, text string) {
		if a, err := decodeParsed(text); err == nil && len(compare(p, a)) == 0 {
			w := s.assemble(p, a)
			if n := len(w.Steps) + len(w.SetupCommands) + len(w.CleanupCommands); n != len(p.refs()) {
				t.Errorf("%d commands of %d", n, len(p.refs()))
			}
		}
		if c, err := decodeClaims(text); err == nil {
			for _, k := range first(s.quote(c, []tgr.CitedLine{{N: 1, Text: "one"}})) {
				if len(k.Lines) != 1 || k.Lines[0].Text != "one" {
					t.Errorf("%+v", k)
				}
			}
		}
		out := fence(text, nil, 1000)
		if strings.Count(out, "<<<DATA "+out[8:32]) != 1 || !strings.HasSuffix(out, "\nDATA "+out[8:32]+">>>") {
			t.Errorf("the fence does not hold: %q", out)
		}
	})
}

func first[T any](v T, _ int) T { return v }

func TestRedact(t *testing.T) {
	r := NewRedactor("hunter2-very-secret", "line one\nline two", "abc")
	for _, s := range []string{
		"x hunter2-very-secret y", "aHVudGVyMi12ZXJ5LXNlY3JldA==", "hunter2-very-secret%20", "line two is here", "68756e746572322d766572792d736563726574",
		"ghp_0123456789abcdefABCDEF0123456789abcd", "github_pat_11ABCDEFG0123456789_abcdefghij", "AKIAIOSFODNN7EXAMPLE", "xoxb-123456789012-abcdefghij",
		"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "https://bob:hunter3pass@example.com/", "Authorization: Bearer abcdef123456", "PASSWORD=letmein1",
		`"api_key": "zzzz-yyyy"`, "npm_abcdefghijklmnopqrstuvwxyz0123456789", "q7Fk29ZpLx81VbTn40Rw", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----",
	} {
		got := r.Redact("before " + s + " after")
		if !strings.Contains(got, hidden) || !strings.HasPrefix(got, "before ") {
			t.Errorf("%q stays %q", s, got)
		}
	}
	for _, s := range []string{
		"go: downloading github.com/google/go-cmp v0.6.0", "src/main/java/com/example/OrderServiceIntegrationTest.java:120: error", "error[E0308]: mismatched types",
		"TestAdd05 redeclared in this block", "${{ secrets.TOKEN }}", "TOKEN: ${{ secrets.TOKEN }}", "authentication failed", "a secret is missing", "expected:<4> but was:<3>",
		"commit 9f86d08", "undefined reference to `_ZN4core3fmt9Formatter3newE'", "abc",
	} {
		if got := r.Redact(s); got != s {
			t.Errorf("%q becomes %q", s, got)
		}
	}
}
