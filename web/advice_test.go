package web

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// advice is an Advisor that says the same of every run.
type advice struct {
	notes  tgr.Notes
	asked  []string
	answer tgr.Claim
	err    error
}

func (a *advice) Notes(run tgr.RunID) (tgr.Notes, bool) { return a.notes, run == 7 }

func (a *advice) Answer(_ context.Context, run tgr.Run, question string) (tgr.Claim, error) {
	a.asked = append(a.asked, run.ID.String()+" "+question)
	return a.answer, a.err
}

func notesOf(text string) tgr.Notes {
	lines := []tgr.CitedLine{{N: 3, Step: 1, Text: text}, {N: 4, Step: 1, Text: "after"}}
	return tgr.Notes{
		Parsed: tgr.Provenance{By: tgr.ByCompiler, Reason: "disagrees", Detail: text, Model: text, At: time.Unix(0, 0).UTC(), Differs: []tgr.Difference{{Field: "steps", Want: "a/1 a/2", Got: text}}},
		Explanations: []tgr.Explanation{{Job: 70, Name: text, Total: 100, Cause: 3, Lines: lines, By: text,
			Claims: []tgr.Claim{{Text: text, Fix: text, Lines: lines[:1]}}, Instead: &tgr.Replacement{Uses: text, Steps: "- run: |\n    " + text, Notes: []string{text}}}},
	}
}

// The notes of a run are on its page, as text whatever is in them, and in the API.
func TestNotes(t *testing.T) {
	a := &advice{notes: notesOf("it broke")}
	s := newSite(t, newMemory().fill(), func(c *Config) { c.Advice = a })
	_, page := ask(t, "GET", s.url+"/runs/7", "")
	wellFormed(t, "/runs/7", page)
	for _, want := range []string{"Workflow read by <b>deterministic</b>: disagrees", "1 differences", "2 of 100 lines", "<b>3 it broke</b>", "<bdi>it broke</bdi></code> was not to be had. These steps", "- run: |\n    it broke</pre>", "thinks: <bdi>it broke</bdi>", "line 3"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	client, err := NewClient(s.url, "")
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.Run(t.Context(), 7, 0)
	if err != nil || d.Notes == nil {
		t.Fatal(d.Notes, err)
	}
	if diff := cmp.Diff(a.notes, *d.Notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	a.notes = notesOf(hostile)
	_, page = ask(t, "GET", s.url+"/runs/7", "")
	wellFormed(t, "/runs/7 with hostile notes", page)
	for _, bad := range []string{"<script>alert", "<img src=x", "\x1b", "\u202e"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
}

func TestQuestions(t *testing.T) {
	a := &advice{answer: tgr.Claim{Text: "because", Lines: []tgr.CitedLine{{N: 1, Step: 1, Text: "x"}}}}
	s := newSite(t, newMemory().fill(), func(c *Config) { c.Advice = a })
	client, err := NewClient(s.url, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.Ask(t.Context(), 7, "why?")
	if diff := cmp.Diff(a.answer, got); err != nil || diff != "" || len(a.asked) != 1 || a.asked[0] != "7 why?" {
		t.Errorf("%v, %v, %s", a.asked, err, diff)
	}
	a.err = tgr.Errorf("ask", tgr.Unavailable, "the language model gives no answer: breaker")
	if _, err := client.Ask(t.Context(), 7, "why?"); tgr.CodeOf(err) != tgr.Unavailable || !strings.Contains(err.Error(), "breaker") {
		t.Error(err)
	}
	for body, want := range map[string]int{`{"question":" "}`: 400, `{"question":"` + strings.Repeat("x", maxText+1) + `"}`: 400, `{"q":"x"}`: 400} {
		if r, text := ask(t, "POST", s.url+"/api/runs/7/questions", body, "Content-Type", "application/json"); r.StatusCode != want {
			t.Errorf("%.40s: %d %s", body, r.StatusCode, text)
		}
	}
	none := newSite(t, newMemory().fill(), nil)
	if r, _ := ask(t, "POST", none.url+"/api/runs/7/questions", `{"question":"x"}`, "Content-Type", "application/json"); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without a model: %d", r.StatusCode)
	}
	locked := newSite(t, newMemory().fill(), func(c *Config) { c.Advice, c.Token = a, "a-token-of-the-test" })
	if r, _ := ask(t, "POST", locked.url+"/api/runs/7/questions", `{"question":"x"}`, "Content-Type", "application/json"); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the token: %d", r.StatusCode)
	}
}

// The model's figures have labels from fixed sets, whatever a backend says.
func TestLLMMetrics(t *testing.T) {
	m := NewMetrics("test")
	m.ObserveLLM("parse", "ollama", "ok", time.Second, 100, 10, 0.5)
	m.ObserveLLM(hostile, hostile, hostile, time.Second, -5, -5, -1)
	m.CountParsed(tgr.ByModel, "")
	m.CountParsed(tgr.ByCompiler, "disagrees", "steps", hostile)
	s := newSite(t, newMemory(), func(c *Config) { c.Metrics = m })
	_, text := ask(t, "GET", s.url+"/metrics", "")
	for _, want := range []string{`tgr_llm_tokens_total{backend="ollama",direction="prompt"} 100`, `tgr_llm_cost_dollars_total{backend="ollama"} 0.5`,
		`tgr_llm_parsed_total{by="llm (verified)",reason="ok"} 1`, `tgr_llm_disagreement_total{field="steps"} 1`, `tgr_llm_disagreement_total{field="other"} 1`,
		`tgr_llm_request_seconds_count{backend="other",outcome="other",task="other"} 1`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
}
