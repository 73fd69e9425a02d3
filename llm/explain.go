package llm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/terraphim/tgr"
)

// Failure is a job that failed.
type Failure struct {
	Job     tgr.JobID
	Name    string // of the job
	Step    string // name of the step that failed; "": not known
	Number  int    // of that step; 0: not known
	Command string // what the step ran
	Log     []LogLine
	Known   Known // what recent successes printed
	Forked  bool  // the log is a stranger's
	NoModel bool  // the reduction is enough
}

// ExplainPrompt is the version of the prompt.
const ExplainPrompt = "explain/1"

const mostClaims = 3

const explainSystem = `You explain why a CI job failed. You are shown the lines of its log that matter, each with its number.
First give the numbers of the lines that prove your claim, then the claim: the root cause in one or two plain sentences, then what to change, in one.
Make one claim; a second or third only for a failure that has nothing to do with the first. Claim nothing that the lines do not show.`

type claims struct {
	Claims []claim `json:"claims"`
}

type claim struct {
	Lines []int  `json:"lines"`
	Cause string `json:"cause"`
	Fix   string `json:"fix"`
}

// Explain reduces the log of a failed job, and has a model name the cause. The reduction is there whatever becomes of
// the model. A claim is kept only with lines of the log, which are quoted from it here.
func (s *Service) Explain(ctx context.Context, f Failure) tgr.Explanation {
	e := tgr.Explanation{Job: f.Job, Name: s.c.Redact.Say(f.Name, 200)}
	r := Reduce(f.Log, f.Number, f.Known)
	e.Total, e.Cause = r.Total, r.Cause
	for _, l := range r.Lines { // of the whole line: what the reduction has cut off may be the end of a secret
		l.Text = s.shortened(strings.TrimRight(f.Log[l.N-1].Text, "\n "), longLine)
		e.Lines = append(e.Lines, l)
	}
	switch {
	case f.NoModel || !s.Enabled():
		e.Reason = string(Disabled)
		return e
	case len(e.Lines) == 0:
		e.Reason = string(Disabled)
		return e
	}
	e.Sent = len(e.Lines)
	rep, err := s.ask(ctx, s.explainTask(f, e.Lines))
	if err != nil {
		e.Reason = string(asFault(err).Reason)
		return e
	}
	e.By, e.Took = rep.model.String(), rep.took
	c, err := decodeClaims(rep.text)
	if err != nil {
		e.Reason = string(Invalid)
		return e
	}
	e.Claims, e.Drops = s.quote(c, e.Lines)
	if len(e.Claims) == 0 {
		e.Reason = string(Invalid)
	}
	return e
}

func (s *Service) explainTask(f Failure, lines []tgr.CitedLine) task {
	schema, err := json.Marshal(object([]string{"claims"}, map[string]any{
		"claims": map[string]any{"type": "array", "minItems": 1, "maxItems": mostClaims, "items": object([]string{"lines", "cause", "fix"}, map[string]any{
			"lines": map[string]any{"type": "array", "minItems": 1, "maxItems": 6, "items": map[string]any{"type": "integer", "enum": numbers(lines)}},
			"cause": map[string]any{"type": "string"}, "fix": map[string]any{"type": "string"},
		})},
	}))
	if err != nil {
		panic(err) // numbers and strings: cannot be
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Job: %s\nStep that failed: %s\nIts command: %s\n\nLines of the log:\n", s.shortened(f.Name, 300), s.shortened(f.Step, 300), s.shortened(f.Command, 1000))
	for _, l := range lines {
		fmt.Fprintf(&b, "%d| %s\n", l.N, l.Text)
	}
	return task{kind: "explain", version: ExplainPrompt, system: explainSystem, data: b.String(), schema: schema, output: 400, trusted: !f.Forked,
		check: func(text string) error { _, err := decodeClaims(text); return err }}
}

func numbers(lines []tgr.CitedLine) []int {
	var all []int
	for _, l := range lines {
		all = append(all, l.N)
	}
	return all
}

func decodeClaims(text string) (claims, error) {
	var c claims
	if err := strict(text, &c); err != nil {
		return c, err
	}
	if len(c.Claims) == 0 || len(c.Claims) > mostClaims {
		return c, fmt.Errorf("%d claims", len(c.Claims))
	}
	for _, x := range c.Claims {
		if strings.TrimSpace(x.Cause) == "" {
			return c, errors.New("a claim without words")
		}
	}
	return c, nil
}

// quote keeps the claims that cite lines which the model was shown, with the text that the server has.
func (s *Service) quote(c claims, lines []tgr.CitedLine) (kept []tgr.Claim, dropped int) {
	byNumber := map[int]tgr.CitedLine{}
	for _, l := range lines {
		byNumber[l.N] = l
	}
	for _, x := range c.Claims {
		out := tgr.Claim{Text: s.c.Redact.Say(x.Cause, 500), Fix: s.c.Redact.Say(x.Fix, 300)}
		cited := map[int]bool{}
		for _, n := range x.Lines {
			if l, ok := byNumber[n]; ok && !cited[n] && len(out.Lines) < 6 {
				cited[n] = true
				out.Lines = append(out.Lines, l)
			}
		}
		if len(out.Lines) == 0 || out.Text == "" {
			dropped++
			continue
		}
		kept = append(kept, out)
	}
	return kept, dropped
}

// Question is a person's, about a run.
type Question struct {
	Text   string // at most 500 bytes count
	About  []tgr.Explanation
	Forked bool
}

const answerSystem = `You answer a question about a CI run from the lines of its logs, each given with the job's number and its own. First give the
lines that prove your answer, then the answer in a few plain sentences. If the lines do not tell, say that.`

// AnswerTo has a model answer a question about a run from what the reductions of its failed jobs hold.
func (s *Service) AnswerTo(ctx context.Context, q Question) (tgr.Claim, error) {
	var b strings.Builder
	var lines []tgr.CitedLine
	fmt.Fprintf(&b, "Question: %s\n\n", s.shortened(q.Text, 500))
	for i, e := range q.About {
		fmt.Fprintf(&b, "Job %s:\n", e.Name)
		for _, l := range e.Lines {
			// One numbering for all jobs: a line of the second job is 1,000,000 and something.
			l.N += i * 1_000_000
			lines = append(lines, l)
			fmt.Fprintf(&b, "%d| %s\n", l.N, l.Text)
		}
	}
	if len(lines) == 0 {
		return tgr.Claim{}, faultf(Disabled, "the run has no failed job with a log")
	}
	t := s.explainTask(Failure{}, lines)
	t.kind, t.version, t.system, t.data, t.trusted = "answer", "answer/1", answerSystem, b.String(), !q.Forked
	rep, err := s.ask(ctx, t)
	if err != nil {
		return tgr.Claim{}, err
	}
	c, err := decodeClaims(rep.text)
	if err != nil {
		return tgr.Claim{}, &Fault{Reason: Invalid, Err: err}
	}
	kept, _ := s.quote(c, lines)
	if len(kept) == 0 {
		return tgr.Claim{}, faultf(Invalid, "the answer cites no line that exists")
	}
	for i := range kept[0].Lines {
		kept[0].Lines[i].N %= 1_000_000
	}
	return kept[0], nil
}
