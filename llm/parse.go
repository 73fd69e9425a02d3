package llm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// Plan is what the compiler made of a workflow, as far as a model may know it. It decides; nothing here changes it.
type Plan struct {
	Name    string
	Trigger string // the event
	Source  string // the workflow file: hostile
	Env     []Var  // of the workflow, as it was written
	Jobs    []PlanJob
	Forked  bool // the workflow is a stranger's
	// Executed is everything that is executed, in a stable form: its hash must be the same before and after.
	Executed []byte
}

// Var is a variable of the workflow's environment.
type Var struct{ Name, Value string }

// PlanJob is a job with its steps in the order of execution.
type PlanJob struct {
	Key   string
	Steps []PlanStep
}

// PlanStep is one step: its command is never retyped by a model, which knows it by a reference such as "build/2".
type PlanStep struct {
	Name    string
	Command string // what run: holds, or "uses: owner/action@ref"
	Dir     string // working-directory; "": the workspace
	Minutes int    // timeout-minutes; 0: not stated
	MayFail bool
}

// Ref is the reference of the i-th step (from 0) of the job.
func (j PlanJob) Ref(i int) string { return fmt.Sprintf("%s/%d", j.Key, i+1) }

// Hash is the SHA-256 of what is executed, in hex.
func (p Plan) Hash() string {
	sum := sha256.Sum256(p.Executed)
	return hex.EncodeToString(sum[:])
}

// refs are all references in the order of the plan.
func (p Plan) refs() []string {
	var all []string
	for _, j := range p.Jobs {
		for i := range j.Steps {
			all = append(all, j.Ref(i))
		}
	}
	return all
}

// ParsedWorkflow is a workflow as the original server's parser put it. Every command in it is the compiler's.
type ParsedWorkflow struct {
	Name            string            `json:"name"`
	Trigger         string            `json:"trigger"`
	Environment     map[string]string `json:"environment"`
	SetupCommands   []string          `json:"setup_commands"`
	Steps           []ParsedStep      `json:"steps"`
	CleanupCommands []string          `json:"cleanup_commands"`
	CachePaths      []string          `json:"cache_paths"` // suggestions of the model: nothing reads them
	Summary         string            `json:"summary,omitempty"`
}

// ParsedStep is a step with what the model says of it.
type ParsedStep struct {
	Ref             string `json:"ref"`
	Name            string `json:"name"`
	Command         string `json:"command"`
	WorkingDir      string `json:"working_dir"`
	ContinueOnError bool   `json:"continue_on_error"`
	TimeoutSeconds  int    `json:"timeout_seconds"`
	Kind            string `json:"kind,omitempty"`             // build, test, …
	Network         bool   `json:"needs_network,omitempty"`    // an opinion: it opens nothing
	Cacheable       bool   `json:"cacheable,omitempty"`        // an opinion
	Minutes         int    `json:"expected_minutes,omitempty"` // an opinion: it is no timeout
}

// parsed is a model's answer: references and annotations.
type parsed struct {
	Name    string       `json:"name"`
	Trigger string       `json:"trigger"`
	Env     []string     `json:"environment"`
	Setup   []string     `json:"setup_commands"`
	Steps   []parsedStep `json:"steps"`
	Cleanup []string     `json:"cleanup_commands"`
	Caches  []string     `json:"cache_paths"`
	Summary string       `json:"summary"`
}

type parsedStep struct {
	Ref       string `json:"ref"`
	Kind      string `json:"kind"`
	Network   bool   `json:"network"`
	Cacheable bool   `json:"cacheable"`
	Minutes   int    `json:"minutes"`
}

// ParsePrompt is the version of the prompt: part of the cache's key and of the provenance.
const ParsePrompt = "parse/1"

// Bounds of what is asked about: a larger workflow has only the compiler's reading.
const (
	mostSteps   = 120
	mostSource  = 20 << 10 // bytes
	mostCaches  = 20
	mostDiffers = 10
)

func stepKinds() []string {
	return []string{"setup", "build", "test", "lint", "package", "deploy", "cleanup", "other"}
}

const parseSystem = `You are an expert parser of GitHub Actions workflows. A compiler has read the workflow already and given every step a reference.
Sort the references: those that prepare a job into setup_commands, those that clean up after it into cleanup_commands, all others into steps.
Use every reference exactly once and keep their order: within a job first its setup_commands, then its steps, then its cleanup_commands.
environment lists all variables of the workflow. For each step say what kind it is, whether it needs the network, whether its results could be
cached and how many minutes it may take. cache_paths are folders worth caching. summary is one plain sentence.`

// parseSchema allows no word for a reference but the plan's own.
func parseSchema(p Plan) json.RawMessage {
	one := func(words []string) map[string]any { return map[string]any{"type": "string", "enum": words} }
	list := func(item map[string]any, most int) map[string]any {
		return map[string]any{"type": "array", "items": item, "maxItems": most}
	}
	text := map[string]any{"type": "string"}
	refs := p.refs()
	env := list(text, 0)
	if len(p.Env) > 0 {
		var names []string
		for _, v := range p.Env {
			names = append(names, v.Name)
		}
		env = list(one(names), len(names))
	}
	step := object([]string{"ref", "kind", "network", "cacheable", "minutes"}, map[string]any{
		"ref": one(refs), "kind": one(stepKinds()), "network": map[string]any{"type": "boolean"},
		"cacheable": map[string]any{"type": "boolean"}, "minutes": map[string]any{"type": "integer"},
	})
	schema, err := json.Marshal(object(
		[]string{"name", "trigger", "environment", "setup_commands", "steps", "cleanup_commands", "cache_paths", "summary"},
		map[string]any{"name": one([]string{p.Name}), "trigger": one([]string{p.Trigger}), "environment": env,
			"setup_commands": list(one(refs), len(refs)), "steps": list(step, len(refs)), "cleanup_commands": list(one(refs), len(refs)),
			"cache_paths": list(text, mostCaches), "summary": text}))
	if err != nil {
		panic(err) // strings, numbers and maps of them: cannot be
	}
	return schema
}

func object(required []string, properties map[string]any) map[string]any {
	return map[string]any{"type": "object", "required": required, "properties": properties, "additionalProperties": false}
}

// Parse has a model read a workflow that the compiler has read, and compares. It changes nothing, and needs no model:
// without one, and whatever the model says, the provenance tells what happened.
func (s *Service) Parse(ctx context.Context, p Plan) tgr.Provenance {
	out := tgr.Provenance{By: tgr.ByCompiler, Prompt: ParsePrompt, PlanHash: p.Hash(), At: s.c.Now()}
	fail := func(f *Fault) tgr.Provenance {
		out.Reason, out.Detail = string(f.Reason), s.c.Redact.Say(strings.TrimPrefix(f.Error(), "llm: "), 300)
		return out
	}
	refs := p.refs()
	switch {
	case !s.Enabled():
		return fail(faultf(Disabled, "no model is configured"))
	case len(refs) == 0:
		return fail(faultf(Disabled, "the workflow has no steps of its own"))
	case len(refs) > mostSteps || len(p.Source) > mostSource:
		return fail(faultf(TooLarge, "%d steps in %d bytes", len(refs), len(p.Source)))
	}
	r, err := s.ask(ctx, s.parseTask(p, len(refs)))
	if err != nil {
		return fail(asFault(err))
	}
	out.Model, out.Digest, out.Cached, out.Took = r.model.String(), r.model.Digest, r.cached, r.took
	a, err := decodeParsed(r.text)
	if err != nil {
		return fail(&Fault{Reason: Invalid, Err: err})
	}
	if diffs := compare(p, a); len(diffs) > 0 {
		for _, d := range diffs[:min(len(diffs), mostDiffers)] {
			out.Differs = append(out.Differs, tgr.Difference{Field: d.Field, Want: s.c.Redact.Say(d.Want, 200), Got: s.c.Redact.Say(d.Got, 200)})
		}
		return fail(faultf(Disagrees, "%d differences, the first in %s", len(diffs), diffs[0].Field))
	}
	if out.Workflow, err = json.Marshal(s.assemble(p, a)); err != nil {
		return fail(&Fault{Reason: Invalid, Err: err})
	}
	out.By = tgr.ByModel
	return out
}

func (s *Service) parseTask(p Plan, refs int) task {
	var b strings.Builder
	b.WriteString("The workflow file:\n" + p.Source + "\n\nThe references:\n")
	for _, j := range p.Jobs {
		for i, st := range j.Steps {
			fmt.Fprintf(&b, "%s: %s\n", j.Ref(i), s.shortened(strings.Join(strings.Fields(st.Name+" | "+st.Command), " "), 120))
		}
	}
	return task{kind: "parse", version: ParsePrompt, system: parseSystem, data: b.String(), schema: parseSchema(p),
		output: min(300+60*refs, 6000), trusted: !p.Forked,
		check: func(text string) error { _, err := decodeParsed(text); return err }}
}

// decodeParsed is strict: no unknown field, nothing after the value, every field there.
func decodeParsed(text string) (parsed, error) {
	var a parsed
	if err := strict(text, &a); err != nil {
		return a, err
	}
	if a.Env == nil || a.Setup == nil || a.Steps == nil || a.Cleanup == nil || a.Caches == nil {
		return a, errors.New("a field is missing")
	}
	if len(a.Caches) > mostCaches {
		return a, fmt.Errorf("%d cache paths", len(a.Caches))
	}
	for _, st := range a.Steps {
		if !slices.Contains(stepKinds(), st.Kind) {
			return a, errors.New("a step of no known kind")
		}
	}
	return a, nil
}

// strict decodes one JSON value and nothing else.
func strict(text string, into any) error {
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the answer goes on after its value")
	}
	return nil
}

// compare returns every difference between what the answer would execute and what the plan does.
func compare(p Plan, a parsed) []tgr.Difference {
	var diffs []tgr.Difference
	differ := func(field, want, got string) {
		if want != got {
			diffs = append(diffs, tgr.Difference{Field: field, Want: want, Got: got})
		}
	}
	differ("name", p.Name, a.Name)
	differ("trigger", p.Trigger, a.Trigger)
	var env []string
	for _, v := range p.Env {
		env = append(env, v.Name)
	}
	differ("environment", strings.Join(slices.Sorted(slices.Values(env)), " "), strings.Join(slices.Sorted(slices.Values(a.Env)), " "))
	var steps []string
	for _, st := range a.Steps {
		steps = append(steps, st.Ref)
	}
	rest := 0
	for _, j := range p.Jobs {
		var want []string
		for i := range j.Steps {
			want = append(want, j.Ref(i))
		}
		of := func(refs []string) (mine []string) {
			for _, r := range refs {
				if slices.Contains(want, r) {
					mine = append(mine, r)
				}
			}
			return mine
		}
		got := slices.Concat(of(a.Setup), of(steps), of(a.Cleanup))
		rest += len(got)
		differ("steps", strings.Join(want, " "), strings.Join(got, " "))
	}
	if all := slices.Concat(a.Setup, steps, a.Cleanup); len(all) != rest {
		differ("steps", "references of this plan", strings.Join(all, " "))
	}
	for _, list := range []struct {
		field string
		refs  []string
	}{{"setup_commands", a.Setup}, {"steps", steps}, {"cleanup_commands", a.Cleanup}} {
		if !inOrder(p, list.refs) {
			differ(list.field, "the order of the plan's jobs", strings.Join(list.refs, " "))
		}
	}
	return diffs
}

// inOrder reports whether the references of different jobs come in the order of the plan's jobs.
func inOrder(p Plan, refs []string) bool {
	place := map[string]int{}
	for i, r := range p.refs() {
		place[r] = i
	}
	return slices.IsSortedFunc(refs, func(a, b string) int { return place[a] - place[b] })
}

// assemble puts the compiler's commands in the places of the references. The model's own words are made fit to show.
func (s *Service) assemble(p Plan, a parsed) ParsedWorkflow {
	w := ParsedWorkflow{Name: p.Name, Trigger: p.Trigger, Environment: map[string]string{}, SetupCommands: []string{}, Steps: []ParsedStep{},
		CleanupCommands: []string{}, CachePaths: []string{}, Summary: s.c.Redact.Say(a.Summary, 300)}
	for _, v := range p.Env {
		w.Environment[v.Name] = v.Value
	}
	steps := map[string]PlanStep{}
	for _, j := range p.Jobs {
		for i, st := range j.Steps {
			steps[j.Ref(i)] = st
		}
	}
	for _, r := range a.Setup {
		w.SetupCommands = append(w.SetupCommands, steps[r].Command)
	}
	for _, r := range a.Cleanup {
		w.CleanupCommands = append(w.CleanupCommands, steps[r].Command)
	}
	for _, x := range a.Steps {
		st := steps[x.Ref]
		dir := st.Dir
		if dir == "" {
			dir = "/workspace"
		}
		minutes := st.Minutes
		if minutes == 0 {
			minutes = 360
		}
		w.Steps = append(w.Steps, ParsedStep{Ref: x.Ref, Name: st.Name, Command: st.Command, WorkingDir: dir, ContinueOnError: st.MayFail,
			TimeoutSeconds: 60 * minutes, Kind: x.Kind, Network: x.Network, Cacheable: x.Cacheable, Minutes: min(max(x.Minutes, 0), 360)})
	}
	for _, c := range a.Caches {
		if c = s.c.Redact.Say(c, 200); c != "" {
			w.CachePaths = append(w.CachePaths, c)
		}
	}
	return w
}
