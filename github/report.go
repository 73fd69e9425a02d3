package github

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// The kinds of reports: the first part of a report's key, and what its body is.
const (
	KindStatus  = "status"  // StatusReport
	KindCheck   = "check"   // CheckReport
	KindComment = "comment" // CommentReport
)

// Outgoing is a report on its way into the outbox. Of the same key only the last one counts.
type Outgoing struct {
	Key  string // "check/17", "status/<repository>/<commit>/<context>": begins with the kind
	Body []byte // JSON
}

// StatusReport is a commit status. Its key names repository, commit and context: GitHub shows the last of these.
type StatusReport struct {
	Repo        string `json:"repo"` // owner/name
	SHA         string `json:"sha"`
	State       string `json:"state"` // pending, success, failure, error
	Context     string `json:"context"`
	Description string `json:"description"` // at most 140 characters
	TargetURL   string `json:"target_url,omitempty"`
}

// CheckReport is a check run, one per job.
type CheckReport struct {
	Repo        string           `json:"repo"`
	SHA         string           `json:"sha"`
	Name        string           `json:"name"`
	ExternalID  string           `json:"external_id"` // our id of the job: finds a check run whose creation was not confirmed
	DetailsURL  string           `json:"details_url,omitempty"`
	Status      string           `json:"status"`               // queued, in_progress, completed
	Conclusion  string           `json:"conclusion,omitempty"` // GitHub's, of a completed one
	Started     time.Time        `json:"started,omitzero"`
	Completed   time.Time        `json:"completed,omitzero"`
	Title       string           `json:"title"`
	Summary     string           `json:"summary"` // Markdown
	Text        string           `json:"text,omitempty"`
	Annotations []tgr.Annotation `json:"annotations,omitempty"`
}

// CommentReport is one workflow's part of the comment of a pull request.
type CommentReport struct {
	Repo    string `json:"repo"`
	Number  int    `json:"number"`  // of the pull request
	Section string `json:"section"` // the workflow's file
	Run     int64  `json:"run"`     // an older run's report does not replace a newer one's
	Attempt int    `json:"attempt"`
	Body    string `json:"body"` // Markdown
}

// ReportOptions are what reports need beyond the run and its jobs.
type ReportOptions struct {
	// URL is the address of a run's page, or of a job's (job 0: the run); nil, or "": reports have no link.
	URL func(run tgr.RunID, job tgr.JobID) string
	// Lines returns the first lines of a failed job's log that tell why, masked; nil: reports have none.
	Lines func(job tgr.Job) []string
	// Why returns plain text about why a job failed, hostile; nil, or "": there is none.
	Why func(job tgr.Job) string
	// Hint returns a sentence for the pull request about a run that failed, plain and hostile; nil, or "": there is none.
	Hint func(run tgr.Run, jobs []tgr.Job) string
	Now  func() time.Time // for durations of what still runs; nil: time.Now
}

// Reports builds all reports of a run in its present state: a status and a check run for each job, and the part of
// the pull request's comment. A run that failed without jobs, such as one whose workflow cannot be read, gets a
// status and a check run of its own. It is a pure function but for Lines.
//
// Runs for status, check_run and check_suite events are not reported: the report would be such an event, and start
// the next run.
func Reports(run tgr.Run, jobs []tgr.Job, o ReportOptions) []Outgoing {
	if o.URL == nil {
		o.URL = func(tgr.RunID, tgr.JobID) string { return "" }
	}
	if o.Lines == nil {
		o.Lines = func(tgr.Job) []string { return nil }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	sha := cmp.Or(run.Event.HeadSHA, run.Event.SHA)
	if sha == "" || zeroSHA(sha) || slices.Contains([]string{"status", "check_run", "check_suite"}, run.Event.Name) {
		return nil
	}
	b := &builder{run: run, sha: sha, o: o}
	var work []tgr.Job
	for _, j := range jobs {
		if j.Kind == tgr.PlanJob || j.Calling() {
			continue // the jobs that it calls are shown
		}
		work = append(work, j)
	}
	if len(work) == 0 {
		if !run.Status.Done() || !run.Conclusion.Failed() {
			return nil // not planned yet, or nothing of it is for this event
		}
		b.whole()
	}
	b.hold()
	names := distinct(work)
	for i, j := range work {
		// Only when its matrix is expanded is it known how many jobs it is, and their names.
		if j.Status != tgr.Pending || len(j.Instance) > 0 {
			b.job(j, names[i])
		}
	}
	if run.Event.Number > 0 && strings.HasPrefix(run.Event.Name, "pull_request") {
		b.comment(work)
	}
	return b.out
}

// builder collects the reports of one run.
type builder struct {
	run tgr.Run
	sha string
	o   ReportOptions
	out []Outgoing
}

func (b *builder) add(kind, key string, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // strings, numbers and times: cannot be
	}
	b.out = append(b.out, Outgoing{Key: kind + "/" + key, Body: data})
}

// workflow is what the run's workflow is called: its name, or its file.
func (b *builder) workflow() string {
	return plain(cmp.Or(b.run.WorkflowName, b.run.WorkflowFile, "tgr"))
}

// whole reports a run that has no jobs as if it were one.
func (b *builder) whole() {
	name := clip(b.workflow()+" ("+b.run.Event.Name+")", 250)
	reason := plain(cmp.Or(b.run.Reason, "The workflow could not be started."))
	url := b.o.URL(b.run.ID, 0)
	b.status(name, StatusReport{State: "failure", Description: reason, TargetURL: url})
	b.add(KindCheck, "run/"+b.run.ID.String()+"/"+strconv.Itoa(b.run.Attempt), CheckReport{
		Repo: b.run.Event.Repo.FullName, SHA: b.sha, Name: name, ExternalID: "run-" + b.run.ID.String(), DetailsURL: url,
		Status: "completed", Conclusion: "failure", Started: b.run.Started, Completed: cmp.Or(b.run.Finished, b.run.Started),
		Title: runes(reason, 120), Summary: clip(escape(cmp.Or(b.run.Reason, reason)), 60_000), Annotations: b.startupAnnotations(),
	})
}

// startupAnnotations puts the reason at the workflow's file, where the reason names a place in it.
func (b *builder) startupAnnotations() []tgr.Annotation {
	if b.run.WorkflowFile == "" {
		return nil
	}
	a := tgr.Annotation{Level: "error", File: b.run.WorkflowFile, Line: 1, Title: "Invalid workflow file", Message: cmp.Or(b.run.Reason, "The workflow could not be started.")}
	if rest, ok := strings.CutPrefix(b.run.Reason, b.run.WorkflowFile+":"); ok {
		num, _, _ := strings.Cut(rest, ":")
		if n, err := strconv.Atoi(num); err == nil && n > 0 {
			a.Line = n
		}
	}
	return []tgr.Annotation{a}
}

func (b *builder) status(context string, r StatusReport) {
	r.Repo, r.SHA, r.Context = b.run.Event.Repo.FullName, b.sha, context
	r.Description = runes(r.Description, 140)
	b.add(KindStatus, strconv.FormatInt(b.run.Event.Repo.ID, 10)+"/"+b.sha+"/"+context, r)
}

// distinct are the names of jobs: with the key where a job of another key has the same name, and with the index where
// another instance of its matrix has, such as where long values are cut off. The success of one must not
// hide the failure of the other.
func distinct(jobs []tgr.Job) []string {
	names := make([]string, len(jobs))
	byName, byKey := map[string]int{}, map[[2]string]int{}
	for i, j := range jobs {
		names[i] = clip(plain(jobName(j)), 100)
		byName[names[i]]++
		byKey[[2]string{names[i], j.Key}]++
	}
	for i, j := range jobs {
		same, alike := byKey[[2]string{names[i], j.Key}], byName[names[i]]
		if alike > same {
			names[i] += " [" + clip(plain(j.Key), 30) + "]"
		}
		if same > 1 {
			names[i] += " #" + strconv.Itoa(j.Index+1)
		}
	}
	return names
}

// CheckKey is the key of the report on a job's check run.
func CheckKey(job tgr.JobID) string { return KindCheck + "/" + job.String() }

// CheckRunID is GitHub's id of the check run that was delivered under a remote id; 0 if none was.
func CheckRunID(remoteID string) int64 {
	var k checkRun
	k.parseID(remoteID)
	return k.id
}

// job reports one job as status and check run.
func (b *builder) job(j tgr.Job, name string) {
	name = clip(clip(b.workflow(), 80)+" / "+name+" ("+b.run.Event.Name+")", 250)
	url := b.o.URL(b.run.ID, j.ID)
	said := b.describe(j)
	b.status(name, StatusReport{State: stateOf(j), Description: said, TargetURL: url})
	c := CheckReport{
		Repo: b.run.Event.Repo.FullName, SHA: b.sha, Name: name, ExternalID: j.ID.String(), DetailsURL: url,
		Status: "queued", Started: j.Started, Title: runes(said, 120), Summary: b.summary(j),
	}
	switch j.Status {
	case tgr.InProgress:
		c.Status = "in_progress"
	case tgr.Completed:
		c.Status, c.Conclusion, c.Completed = "completed", checkConclusion(j), cmp.Or(j.Finished, j.Started, b.run.Finished)
		c.Annotations = j.Annotations
		if j.Conclusion.Failed() {
			c.Text = b.lines(j)
		}
		c.Text = strings.TrimPrefix(c.Text+"\n"+j.Summary, "\n") // a Markdown block ends with an empty line
	}
	b.add(KindCheck, j.ID.String(), c)
}

// stateOf maps a job to the four states that a commit status has.
func stateOf(j tgr.Job) string {
	switch {
	case !j.Status.Done():
		return "pending"
	case !j.Conclusion.Failed() || j.ContinueOnError && j.Conclusion != tgr.Cancelled:
		return "success"
	case j.Conclusion == tgr.Cancelled || j.Blame == tgr.BlameOurs:
		return "error"
	}
	return "failure"
}

// checkConclusion maps a completed job to a check run's conclusion. An absent conclusion is a failure.
func checkConclusion(j tgr.Job) string {
	switch c := j.Conclusion; {
	case c == tgr.Success || c == tgr.Skipped || c == tgr.Cancelled:
		return string(c)
	case j.ContinueOnError:
		return "neutral"
	case c == tgr.TimedOut:
		return string(c)
	}
	return "failure"
}

// describe says in one line how a job is, and why.
func (b *builder) describe(j tgr.Job) string {
	took := ""
	if d := b.took(j.Started, j.Finished); d != "" {
		took = " after " + d
	}
	reason := plain(j.Reason)
	if reason != "" {
		reason = ": " + reason
	}
	switch j.Status {
	case tgr.Pending:
		return "Waiting" + reason
	case tgr.Queued:
		return "Queued" + reason
	case tgr.InProgress:
		return "In progress"
	}
	switch {
	case j.Conclusion == tgr.Success:
		return "Successful" + strings.Replace(took, "after", "in", 1)
	case j.Conclusion == tgr.Skipped:
		return "Skipped" + reason
	case j.Conclusion == tgr.Cancelled:
		return "Cancelled" + took + reason
	case j.Blame == tgr.BlameOurs:
		return "Not the job's fault: the runner failed" + took + reason
	case j.Conclusion == tgr.TimedOut:
		return "Timed out" + took + reason
	}
	verb := "Failed"
	if j.ContinueOnError {
		verb = "Failed (may fail)"
	}
	if s := failedStep(j); s != nil && reason == "" {
		reason = ": " + plain(s.Name)
		if s.ExitCode != nil {
			reason += " (exit status " + strconv.Itoa(*s.ExitCode) + ")"
		}
	}
	return verb + took + reason
}

func failedStep(j tgr.Job) *tgr.Step {
	for i, s := range j.Steps {
		if s.Status.Done() && s.Conclusion.Failed() {
			return &j.Steps[i]
		}
	}
	return nil
}

// took is how long something lasted, or lasts, as people say it: 0.4s, 12s, 3m 4s, 1h 2m.
func (b *builder) took(from, to time.Time) string {
	if from.IsZero() {
		return ""
	}
	if to.IsZero() {
		to = b.o.Now()
	}
	d := max(to.Sub(from), 0)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh %dm", int(d.Hours()), int(d.Minutes())%60)
}

const maxStepsShown = 100

// summary is the table of a job's steps, in Markdown.
func (b *builder) summary(j tgr.Job) string {
	var s strings.Builder
	if j.Isolation != "" {
		fmt.Fprintf(&s, "Ran on a machine of its own (%s).\n\n", escape(j.Isolation))
	}
	if j.Tries > 1 {
		fmt.Fprintf(&s, "Try %d: what ended the earlier ones was not the job's fault.\n\n", j.Tries)
	}
	if j.Reason != "" {
		s.WriteString(escape(runes(j.Reason, 2000)) + "\n\n")
	}
	if len(j.Steps) == 0 {
		return s.String() + "No step has run."
	}
	s.WriteString("| Step | Result | Duration |\n|---|---|---|\n")
	for i, st := range j.Steps {
		if i == maxStepsShown {
			fmt.Fprintf(&s, "\n%d more steps.\n", len(j.Steps)-i)
			break
		}
		fmt.Fprintf(&s, "| %d. %s | %s | %s |\n", st.Number, escape(runes(st.Name, 120)), result(st.Status, st.Conclusion), b.took(st.Started, st.Finished))
	}
	return s.String()
}

// result is a word with its sign.
func result(s tgr.Status, c tgr.Conclusion) string {
	if !s.Done() {
		switch s {
		case tgr.InProgress:
			return "🟡 running"
		case tgr.Queued:
			return "⚪ queued"
		}
		return "⚪ waiting"
	}
	switch c {
	case tgr.Success:
		return "✅ success"
	case tgr.Skipped:
		return "⏭️ skipped"
	case tgr.Cancelled:
		return "🚫 cancelled"
	case tgr.TimedOut:
		return "⏱️ timed out"
	}
	return "❌ failure"
}
