package llm

import (
	"context"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
)

// No part of a secret reaches a prompt or a page, wherever in a long line it stands: what is cut is redacted first.
func TestNoPartOfASecretLeaks(t *testing.T) {
	const secret, part = "correct-horse-battery-staple", "correct-horse"
	rapid.Check(t, func(t *rapid.T) {
		var prompts []string
		s := New(Config{Redact: NewRedactor(secret), Clients: []Client{scripted{chat: func(_ context.Context, q Query) (Answer, error) {
			prompts = append(prompts, q.System+q.User)
			return Answer{}, faultf(Invalid, "")
		}}}})
		filler := rapid.SampledFrom([]string{"x", "word ", "é", "a=b ", secret + " "}).Draw(t, "filler")
		text := strings.Repeat(filler, rapid.IntRange(0, 2000).Draw(t, "before")/len(filler)) + strings.Repeat("y", rapid.IntRange(0, 40).Draw(t, "shift")) + " error: " + secret + " tail"
		p := fixturePlan("x", 1, 1)
		p.Jobs[0].Steps[0].Command = text
		s.Parse(t.Context(), p)
		e := s.Explain(t.Context(), Failure{Name: text, Step: text, Command: text, Log: []LogLine{{1, text}, {1, "end"}}})
		if _, err := s.AnswerTo(t.Context(), Question{Text: text, About: []tgr.Explanation{e}}); err == nil {
			t.Fatal("an answer of a model that gives none")
		}
		if _, err := s.ProposeStep(t.Context(), Action{Uses: "a/b@c", With: map[string]string{"in": text}, Accept: anyAnswer}); err == nil {
			t.Fatal("a proposal without an answer")
		}
		for _, l := range e.Lines {
			prompts = append(prompts, l.Text)
		}
		if len(prompts) < 4 {
			t.Fatalf("%d prompts", len(prompts))
		}
		for _, got := range append(prompts, e.Name) {
			if i := strings.Index(got, part); i >= 0 {
				t.Fatalf("a part of the secret, in ...%s", got[max(0, i-60):min(len(got), i+60)])
			}
		}
	})
}
