package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/workflow"
)

// planFlags are the event that `tgr plan` asks about.
type planFlags struct {
	event, payload, ref string
	changed             []string
	asJSON              bool
}

// newPlanCmd returns `tgr plan`, which shows what would run for an event.
func newPlanCmd() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "plan [--json] [--event NAME] [--payload FILE] [--ref REF] [--changed PATH]… [PATH…]",
		Short: "Show what would run for an event, and for what would not, why",
		Long: `Plan compiles workflow files for an event and shows which jobs would run, with the combinations of their matrix
where these are known beforehand, of the folder that you are in if no path is given. For a workflow that would not run it names the filter that says so.

The event's fields come from --payload, a webhook's JSON. Without one, --ref is the branch or tag of a push and the
target branch of a pull request (refs/heads/main if it is not given), and every activity type matches. Without
--changed the changed files are not known, and filters of paths let the event pass.

With --json it prints an array with an element per file:
{"file":…,"runs":…,"reason":…,"errors":[…],"warnings":[…],"jobs":[{"id","needs","instances":[names]}],"plan":{…}}.
The exit status is 2 if a file has an error.`,
		Example: "  tgr plan --event push --ref v1.2 --changed README.md",
		RunE: func(cmd *cobra.Command, paths []string) error {
			if err := knownEvent(f.event); err != nil {
				return usageError{err}
			}
			t, github, err := f.trigger(cmd.Flags().Changed("changed"))
			if err != nil {
				return usageError{err}
			}
			return planAll(cmd.OutOrStdout(), orHere(paths), t, github, f.asJSON)
		},
	}
	cmd.Flags().StringVar(&f.event, "event", "push", "`name` of the event, as in X-GitHub-Event")
	cmd.Flags().StringVar(&f.payload, "payload", "", "`file` with the event's payload")
	cmd.Flags().StringVar(&f.ref, "ref", "", "branch or tag, or the full `ref`; overrides the payload's")
	cmd.Flags().StringArrayVar(&f.changed, "changed", nil, "`path` of a changed file; may be repeated")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

// planPayload is what filters read of a payload.
type planPayload struct {
	Action      string         `json:"action"`
	Ref         string         `json:"ref"`
	Deleted     bool           `json:"deleted"`
	Schedule    string         `json:"schedule"`
	Inputs      map[string]any `json:"inputs"`
	PullRequest struct {
		Base struct{ Ref string } `json:"base"`
		Head struct{ Ref string } `json:"head"`
	} `json:"pull_request"`
	MergeGroup struct {
		BaseRef string `json:"base_ref"`
		HeadRef string `json:"head_ref"`
	} `json:"merge_group"`
	WorkflowRun struct {
		Name       string `json:"name"`
		HeadBranch string `json:"head_branch"`
	} `json:"workflow_run"`
}

// trigger makes the event, and the github context that expressions see.
func (f *planFlags) trigger(changedKnown bool) (workflow.Trigger, map[string]any, error) {
	t := workflow.Trigger{Event: f.event}
	github := map[string]any{"event_name": f.event}
	var p planPayload
	if f.payload != "" {
		data, err := os.ReadFile(f.payload)
		if err != nil {
			return t, nil, err
		}
		if err := json.Unmarshal(data, &p); err != nil {
			return t, nil, fmt.Errorf("%s: %w", f.payload, err)
		}
		var event map[string]any
		if err := json.Unmarshal(data, &event); err != nil {
			return t, nil, fmt.Errorf("%s: %w", f.payload, err)
		}
		github["event"] = event
	}
	t.Action, t.Deleted, t.Cron = p.Action, p.Deleted, p.Schedule
	if f.event == "repository_dispatch" {
		t.EventType = p.Action
	}
	t.Workflow = p.WorkflowRun.Name
	t.BaseRef = firstOf(p.PullRequest.Base.Ref, p.MergeGroup.BaseRef, f.ref, "main")
	t.HeadRef = firstOf(p.PullRequest.Head.Ref, p.WorkflowRun.HeadBranch, p.MergeGroup.HeadRef)
	t.Ref = fullRef(firstOf(f.ref, p.Ref, "refs/heads/main"))
	if f.event == "workflow_dispatch" {
		t.Inputs = map[string]string{}
		for k, v := range p.Inputs {
			if v != nil {
				t.Inputs[k] = fmt.Sprint(v)
			}
		}
	}
	if changedKnown {
		t.Changed = func() ([]string, error) { return f.changed, nil }
	}
	github["ref"], github["ref_name"] = t.Ref, shortRef(t.Ref)
	github["base_ref"], github["head_ref"] = t.BaseRef, t.HeadRef
	return t, github, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// knownEvent refuses an event that starts no workflow, with the likely spelling.
func knownEvent(name string) error {
	if tip, known := workflow.KnownEvent(name); !known {
		return fmt.Errorf("there is no event '%s'%s", name, tip)
	}
	return nil
}

// fullRef takes a short name for a branch, unless it looks like a version and so like a tag.
func fullRef(ref string) string {
	switch {
	case strings.HasPrefix(ref, "refs/"):
		return ref
	case len(ref) > 1 && ref[0] == 'v' && ref[1] >= '0' && ref[1] <= '9':
		return "refs/tags/" + ref
	}
	return "refs/heads/" + ref
}

func shortRef(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/")
}

// plannedFile is the answer about one workflow file.
type plannedFile struct {
	File     string         `json:"file"`
	Runs     bool           `json:"runs"`
	Reason   string         `json:"reason,omitempty"`
	Errors   []checkProblem `json:"errors"`
	Warnings []checkProblem `json:"warnings"`
	Jobs     []plannedJob   `json:"jobs,omitempty"`
	Plan     *workflow.Plan `json:"plan,omitempty"`
}

type plannedJob struct {
	ID        string   `json:"id"`
	Needs     []string `json:"needs,omitempty"`
	Uses      string   `json:"uses,omitempty"`
	Instances []string `json:"instances,omitempty"` // names; none where they depend on other jobs
	Note      string   `json:"note,omitempty"`      // why there are none
}

func planAll(out io.Writer, paths []string, t workflow.Trigger, github map[string]any, asJSON bool) error {
	files, err := checkFiles(paths)
	if err != nil {
		return err
	}
	var answers []plannedFile
	failed := false
	for _, path := range files {
		if isActionFile(path) && !isWorkflowFolder(filepath.Dir(path)) {
			continue
		}
		a, err := planFile(path, t, github)
		if err != nil {
			return usageError{err}
		}
		answers = append(answers, a)
		failed = failed || len(a.Errors) > 0
	}
	if asJSON {
		err = writeIndented(out, answers)
	} else {
		err = planText(out, t.Event, answers)
	}
	if err != nil {
		return ours(err)
	}
	if failed {
		return exitError{exitUsage, nil}
	}
	return nil
}

func planFile(path string, t workflow.Trigger, github map[string]any) (plannedFile, error) {
	a := plannedFile{File: path, Errors: []checkProblem{}, Warnings: []checkProblem{}}
	src, err := readWorkflow(path)
	if err != nil {
		return a, err
	}
	w, problems := workflow.Parse(path, src)
	if w != nil && !workflow.Failed(problems) {
		m := w.Match(t)
		a.Runs, a.Reason = m.OK, m.Reason
		if m.OK {
			var more []workflow.Problem
			a.Plan, more = workflow.Compile(w, workflow.Options{Trigger: t, Load: localWorkflows(path), Repo: repoOfFile(path, w)})
			problems = append(problems, more...)
		}
	}
	checked := checkedFile{File: path, Errors: a.Errors, Warnings: a.Warnings}
	for i, p := range problems {
		if p.File != path { // of a workflow that this one calls
			problems[i] = workflow.Problem{File: path, Rule: p.Rule, Severity: p.Severity, Message: p.Error()}
		}
	}
	checked.add(problems)
	a.Errors, a.Warnings = checked.Errors, checked.Warnings
	if a.Plan == nil {
		if len(a.Errors) > 0 {
			a.Runs, a.Reason = false, "the file has errors"
		}
		return a, nil
	}
	a.describe(github)
	return a, nil
}

// describe lists the jobs with their instances as far as they are known before anything has run.
func (a *plannedFile) describe(github map[string]any) {
	scope := &workflow.Scope{GitHub: github, Inputs: a.Plan.Inputs}
	for i := range a.Plan.Jobs {
		j := &a.Plan.Jobs[i]
		out := plannedJob{ID: j.Key, Needs: j.Needs, Uses: j.Uses}
		a.fill(&out, j, scope)
		a.Jobs = append(a.Jobs, out)
	}
}

func (a *plannedFile) fill(out *plannedJob, j *workflow.Job, scope *workflow.Scope) {
	if len(j.Needs) == 0 {
		switch run, err := j.Decide(a.Plan, scope); {
		case err != nil:
			out.Note = err.Error()
			return
		case !run:
			out.Note = "skipped: if: " + j.If
			return
		}
	}
	instances, err := j.Expand(a.Plan, scope)
	if err != nil {
		if len(j.Needs) > 0 {
			out.Note = "depends on " + strings.Join(j.Needs, ", ")
			return
		}
		out.Note = err.Error()
		return
	}
	for _, in := range instances {
		out.Instances = append(out.Instances, in.Name)
	}
}

func planText(out io.Writer, event string, files []plannedFile) error {
	var b bytes.Buffer
	for _, f := range files {
		if f.Runs {
			fmt.Fprintf(&b, "%s: runs on %s\n", f.File, event)
		} else {
			fmt.Fprintf(&b, "%s: does not run: %s\n", f.File, f.Reason)
		}
		for _, p := range f.Errors {
			fmt.Fprintf(&b, "  %s:%d:%d: %s\n", f.File, p.Line, p.Column, p.Message)
		}
		for _, j := range f.Jobs {
			fmt.Fprintf(&b, "  %s", j.ID)
			if len(j.Needs) > 0 {
				fmt.Fprintf(&b, " (needs %s)", strings.Join(j.Needs, ", "))
			}
			if j.Uses != "" {
				fmt.Fprintf(&b, " calls %s", j.Uses)
			}
			if j.Note != "" {
				fmt.Fprintf(&b, ": %s", j.Note)
			}
			b.WriteByte('\n')
			if len(j.Instances) == 1 && j.Instances[0] == j.ID {
				continue
			}
			for _, name := range j.Instances {
				fmt.Fprintf(&b, "    %s\n", name)
			}
		}
	}
	_, err := out.Write(b.Bytes())
	return err
}
