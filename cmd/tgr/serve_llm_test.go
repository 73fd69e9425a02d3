package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// scriptedOllama speaks Ollama's protocol and answers as it is told.
type scriptedOllama struct {
	*httptest.Server
	mu      sync.Mutex
	prompts []string
	answer  func(schema, prompt string) string
}

func newScriptedOllama(t *testing.T) *scriptedOllama {
	o := &scriptedOllama{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/tags", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"models":[{"name":"scripted:latest","digest":"`+strings.Repeat("ab", 32)+`"}]}`)
	})
	mux.HandleFunc("POST /api/chat", func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Messages []struct{ Content string }
			Format   json.RawMessage
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		if len(q.Messages) == 0 { // asked to load
			fmt.Fprintln(w, `{"done":true,"done_reason":"load"}`)
			return
		}
		o.mu.Lock()
		prompt := q.Messages[0].Content + q.Messages[1].Content
		o.prompts = append(o.prompts, prompt)
		answer := o.answer
		o.mu.Unlock()
		text, _ := json.Marshal(answer(string(q.Format), q.Messages[1].Content))
		fmt.Fprintf(w, "{\"message\":{\"content\":%s},\"done\":false}\n{\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":50,\"eval_count\":20,\"prompt_eval_duration\":1000000000,\"eval_duration\":1000000000}\n", text)
	})
	o.Server = httptest.NewServer(mux)
	t.Cleanup(o.Close)
	return o
}

// asked is everything that the model was asked.
func (o *scriptedOllama) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.prompts)
}

func (o *scriptedOllama) say(fn func(schema, prompt string) string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = fn
}

var refLine = regexp.MustCompile(`(?m)^([\w-]+/\d+): `)

// agreeing answers as a model would that has understood everything.
func agreeing(schema, prompt string) string {
	if !strings.Contains(schema, "setup_commands") {
		n := regexp.MustCompile(`(?m)^(\d+)\| .*the cause is here`).FindStringSubmatch(prompt)
		return fmt.Sprintf(`{"claims":[{"lines":[%s,999999],"cause":"The tests cannot find it, says @octocat at https://evil.example/x","fix":"Add it."},{"lines":[888888],"cause":"made up","fix":""}]}`, n[1])
	}
	var steps []string
	for _, m := range refLine.FindAllStringSubmatch(prompt, -1) {
		steps = append(steps, `{"ref":"`+m[1]+`","kind":"test","network":true,"cacheable":false,"minutes":9999}`)
	}
	name := regexp.MustCompile(`"name":\{"enum":\["([^"]*)"\]`).FindStringSubmatch(schema)[1]
	trigger := regexp.MustCompile(`"trigger":\{"enum":\["([^"]*)"\]`).FindStringSubmatch(schema)[1]
	return fmt.Sprintf(`{"name":%q,"trigger":%q,"environment":["MODE"],"setup_commands":[],"steps":[%s],"cleanup_commands":[],"cache_paths":["~/.cache"],"summary":"It tests."}`,
		name, trigger, strings.Join(steps, ","))
}

// reversed is agreeing with the steps in the wrong order.
func reversed(schema, prompt string) string {
	if !strings.Contains(schema, "setup_commands") {
		return agreeing(schema, prompt)
	}
	lines := strings.Split(prompt, "\n")
	slices.Reverse(lines)
	return agreeing(schema, strings.Join(lines, "\n"))
}

const llmWorkflow = `name: Bad
on: [push, pull_request]
env:
  MODE: fast
  PASSWORD: canary-in-the-workflow-1
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - run: echo one
      - run: |
          for i in $(seq 100); do echo "noise $i"; done
          echo "Error: the cause is here"
          echo "token ghp_0123456789abcdefghijABCDEFGHIJ012345"
          exit 3
`

// A model is asked beside the run: what it says is shown with where it comes from, and changes nothing.
func TestServeModel(t *testing.T) {
	o := newScriptedOllama(t)
	o.say(agreeing)
	s := openSite(t, "USE_LLM_PARSER=true", "OLLAMA_BASE_URL="+o.URL, "OLLAMA_MODEL=scripted")
	wf := strings.Replace(llmWorkflow, "  PASSWORD: canary-in-the-workflow-1\n", "", 1)
	repo := s.repo("acme/model", map[string]string{workflowDir + "/bad.yml": wf})
	if err := repo.Branch("change", repo.SHA("main")); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Commit("change", "change", map[string]string{"file": "x"}); err != nil {
		t.Fatal(err)
	}
	pull, err := repo.OpenPull(nil, "change", "main")
	if err != nil {
		t.Fatal(err)
	}
	run := s.completed(s.send("pull_request", pull.Event("opened")))[0]
	d := s.explained(run.ID)
	p := d.Notes.Parsed
	if p.By != tgr.ByModel || p.Reason != "" || p.Model != "ollama/scripted:latest" || len(p.Digest) != 64 || len(p.PlanHash) != 64 {
		t.Fatalf("read by %+v", p)
	}
	var parsed struct {
		Environment map[string]string
		Steps       []struct {
			Ref, Command    string
			TimeoutSeconds  int `json:"timeout_seconds"`
			ExpectedMinutes int `json:"expected_minutes"`
		}
	}
	if err := json.Unmarshal(p.Workflow, &parsed); err != nil {
		t.Fatal(err)
	}
	if len(parsed.Steps) != 2 || parsed.Steps[0].Command != "echo one" || parsed.Environment["MODE"] != "fast" || parsed.Steps[0].TimeoutSeconds != 360*60 || parsed.Steps[0].ExpectedMinutes != 360 {
		t.Errorf("parsed: %s", p.Workflow)
	}
	if d.Jobs[0].Conclusion != tgr.Failure || d.Jobs[0].Blame != tgr.BlameUser {
		t.Errorf("the job ended as %s, blame %s", d.Jobs[0].Conclusion, d.Jobs[0].Blame)
	}
	e := d.Notes.Explanations[0]
	if len(e.Claims) != 1 || e.Drops != 1 || len(e.Claims[0].Lines) != 1 || !strings.Contains(e.Claims[0].Lines[0].Text, "the cause is here") || e.Claims[0].Lines[0].N != e.Cause {
		t.Errorf("explanation: %+v", e)
	}
	if len(e.Lines)*5 > e.Total {
		t.Errorf("%d of %d lines are left", len(e.Lines), e.Total)
	}
	var comment string
	s.await("the comment", func() bool {
		if all := s.hub.Comments(repo.FullName); len(all) > 0 {
			comment = all[0].Body
		}
		return strings.Contains(comment, "Likely cause, line "+strconv.Itoa(e.Cause)) && strings.Contains(comment, "The tests cannot find it")
	})
	shown := comment + s.get("/runs/"+run.ID.String()) + s.show("runs", "show", run.ID.String()) + s.show("explain", run.ID.String())
	for _, bad := range []string{"evil.example", "@octocat", "ghp_0123456789", "##["} {
		if strings.Contains(shown, bad) {
			t.Errorf("%q is shown", bad)
		}
	}
	for _, want := range []string{"workflow read by: llm (verified), ollama/scripted:latest", "Workflow read by <b>llm (verified)</b>", "ollama/scripted:latest thinks: The tests cannot find it"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not shown in\n%s", want, shown)
		}
	}
	if got := s.show("explain", run.ID.String(), "why", "did", "it", "fail?"); !strings.Contains(got, "The model thinks: The tests cannot find it") || !strings.Contains(got, "citing line") {
		t.Errorf("explain with a question: %s", got)
	}
	metrics := s.get("/metrics")
	for _, want := range []string{`tgr_llm_parsed_total{by="llm (verified)",reason="ok"} 1`, `tgr_llm_request_seconds_count{backend="ollama",outcome="ok",task="parse"} 1`, `tgr_llm_tokens_total{backend="ollama",direction="output"} `} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
}

// Whatever the model says, is or is not: the same jobs run, from the same plan, and the reason is on the run.
func TestServeModelFailsInvisibly(t *testing.T) {
	o := newScriptedOllama(t)
	tests := []struct {
		name   string
		env    []string
		answer func(schema, prompt string) string
		reason string
	}{
		{"disagrees", []string{"USE_LLM_PARSER=true", "OLLAMA_BASE_URL=" + o.URL, "OLLAMA_MODEL=scripted"}, reversed, "disagrees"},
		{"invalid", []string{"USE_LLM_PARSER=true", "OLLAMA_BASE_URL=" + o.URL, "OLLAMA_MODEL=scripted"}, func(string, string) string { return `{"network": true}` }, "invalid"},
		{"unreachable", []string{"USE_LLM_PARSER=true", "OLLAMA_BASE_URL=http://127.0.0.1:1", "OLLAMA_MODEL=scripted"}, nil, "unreachable"},
		{"refused", []string{"USE_LLM_PARSER=true", "OLLAMA_BASE_URL=" + o.URL, "OLLAMA_MODEL=nothere"}, nil, "refused"},
		{"disabled", nil, nil, "disabled"},
	}
	plans := map[string]bool{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o.say(tt.answer)
			s := openSite(t, tt.env...)
			repo := s.repo("acme/model", map[string]string{workflowDir + "/bad.yml": llmWorkflow})
			run := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))[0]
			d := s.explained(run.ID)
			p := d.Notes.Parsed
			// A backend that was found broken at the start is left alone by the time of the run.
			if p.By != tgr.ByCompiler || p.Reason != tt.reason && p.Reason != "breaker" {
				t.Errorf("read by %s: %s: %s", p.By, p.Reason, p.Detail)
			}
			if tt.reason == "disagrees" && (len(p.Differs) == 0 || p.Differs[0].Field == "") {
				t.Error("the differences are not kept")
			}
			if d.Jobs[0].Conclusion != tgr.Failure || len(d.Notes.Explanations[0].Lines) == 0 {
				t.Errorf("the job ended as %s, explained by %d lines", d.Jobs[0].Conclusion, len(d.Notes.Explanations[0].Lines))
			}
			plan, err := s.client.Plan(t.Context(), run.ID)
			if err != nil {
				t.Fatal(err)
			}
			plans[string(plan)] = true
			if got := s.show("runs", "show", run.ID.String()); strings.Contains(got, "workflow read by: deterministic ("+p.Reason+")") != (p.Reason != "disabled") {
				t.Errorf("runs show:\n%s", got)
			}
			if got := s.get("/metrics"); !strings.Contains(got, `tgr_llm_parsed_total{by="deterministic",reason="`+p.Reason+`"} 1`) {
				t.Errorf("/metrics does not count the reason %s", p.Reason)
			}
		})
	}
	if len(plans) != 1 {
		t.Errorf("%d plans: the model has changed one", len(plans))
	}
	asked := o.asked()
	if len(asked) == 0 {
		t.Fatal("the model was never asked")
	}
	for _, p := range asked {
		for _, canary := range []string{testSecret, "canary-in-the-workflow-1", "ghp_0123456789"} {
			if strings.Contains(p, canary) {
				t.Errorf("a prompt holds %q", canary)
			}
		}
	}
}

// explained waits until both notes of a run with one failed job have settled.
func (s *site) explained(run tgr.RunID) (d web.RunDetail) {
	s.t.Helper()
	s.await("the notes of run "+run.String(), func() bool {
		var err error
		if d, err = s.client.Run(s.t.Context(), run, 0); err != nil {
			s.t.Fatal(err)
		}
		if d.Notes == nil || d.Notes.Parsed.By == "" || len(d.Notes.Explanations) != 1 {
			return false
		}
		e := d.Notes.Explanations[0]
		return d.Notes.Parsed.Reason == "disabled" || e.By != "" || e.Reason != "disabled"
	})
	return d
}

// show runs tgr and returns what it prints.
func (s *site) show(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("tgr", append(args, "--server", s.url)...).CombinedOutput()
	if err != nil {
		s.t.Errorf("tgr %v: %v", args, err)
	}
	return string(out)
}

// A fork's text is marked as such on its way to a model, which keeps it from those in the cloud.
func TestForksAreMarked(t *testing.T) {
	p, err := llmPlan(tgr.Event{Forked: true}, dispatch.PlannedRun{Plan: []byte(`{"version":1,"name":"x","jobs":[]}`)})
	if err != nil || !p.Forked {
		t.Errorf("%+v, %v", p, err)
	}
}

var envEnum = regexp.MustCompile(`"environment":\{"items":\{"enum":(\[[^\]]*\])`)

// perfect reads any workflow as the compiler does, and cites the first line that it is shown.
func perfect(schema, prompt string) string {
	if !strings.Contains(schema, "setup_commands") {
		n := regexp.MustCompile(`(?m)^(\d+)\| `).FindStringSubmatch(prompt)
		return fmt.Sprintf(`{"claims":[{"lines":[%s],"cause":"this","fix":"that"}]}`, n[1])
	}
	env := "[]"
	if m := envEnum.FindStringSubmatch(schema); m != nil {
		env = m[1]
	}
	return strings.Replace(agreeing(schema, prompt), `"environment":["MODE"]`, `"environment":`+env, 1)
}
