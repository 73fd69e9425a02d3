package web

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/style.css static/live.js static/icon.svg
var staticFiles embed.FS

// What a page shows of a log. The rest is a click away, or in the raw log.
const (
	pageLines = 5000
	pageBytes = 2 << 20
	pageLine  = 10_000 // bytes of one line
)

// layout is what every page has.
type layout struct {
	Title   string
	Version string
	Live    string // the stream that tells when the page has changed, or ""
}

type runsData struct {
	layout
	Runs     []tgr.Run
	Next     string // URL of the next page
	Filtered bool
	Asked    map[string]string // by filter
	Statuses []string
}

type runData struct {
	layout
	RunDetail
	Attempt   int      // the one that is shown
	Waiting   []string // what somebody has to approve, as of Waiting
	Trusted   bool
	Artifacts []tgr.Artifact
	Estimates map[tgr.JobID]time.Duration // of the jobs that have not ended: how long they are likely to take
}

type jobData struct {
	layout
	Run      tgr.Run
	Job      tgr.Job
	Try      int // whose log it is
	Steps    []logStep
	Group    bool // the last line is in a group that goes on
	From     int  // number of the first line
	NextLine int  // number of the line after the last
	Step     int  // of the last line; -1: there is none
	More     bool // there are lines after the last
	Trusted  bool
}

func parsePages() (*template.Template, error) {
	t, err := template.New("").Funcs(template.FuncMap{
		"state": state, "mark": mark, "words": func(s string) string { return strings.ReplaceAll(s, "_", " ") },
		"when": when, "took": took, "plain": Plain, "multiline": multiline, "level": level,
		"ref": ref, "sha": func(s string) string { return Plain(s[:min(len(s), 12)]) },
		"unmarked": unmarked, "exited": exited, "stepID": stepID, "bytes": size, "runTitle": runTitle, "jobTitle": jobTitle, "approval": approval,
		"bar": bar, "lasts": lasts, "percent": percent, "insightsOf": insightsOf,
	}).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("web: parse the pages: %w", err)
	}
	return t, nil
}

// html answers with a page, which is rendered before its first byte is sent.
func (s *Server) html(w http.ResponseWriter, status int, name string, data any) error {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, name, data); err != nil {
		return fmt.Errorf("render page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes()) // an error means that the client has gone
	return nil
}

// failPage answers a request for a page with an error.
func (s *Server) failPage(w http.ResponseWriter, r *http.Request, err error) {
	status := s.note(w, r, err)
	data := struct {
		layout
		Message string
	}{layout{Title: http.StatusText(status), Version: s.cfg.Version}, tgr.MessageOf(err)}
	if err := s.html(w, status, "error", data); err != nil {
		s.fail(w, r, err)
	}
}

func (s *Server) static(w http.ResponseWriter, r *request) error {
	name := r.PathValue("file")
	b, err := staticFiles.ReadFile("static/" + name)
	if err != nil {
		return tgr.Errorf("web", tgr.NotFound, "there is no file %s", cut(name, 50))
	}
	types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	w.Header().Set("Content-Type", types[path.Ext(name)])
	w.Header().Set("Cache-Control", "no-cache")
	w.Write(b) // an error means that the client has gone
	return nil
}

func (s *Server) runsPage(w http.ResponseWriter, r *request) error {
	list, err := s.runs(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	data := runsData{layout: layout{Title: "Runs", Version: s.cfg.Version}, Runs: list.Runs, Filtered: q.Get("before") != "",
		Asked: map[string]string{}, Statuses: runStatuses}
	for _, name := range filters {
		data.Asked[name] = Plain(cut(q.Get(name), 300))
		data.Filtered = data.Filtered || q.Get(name) != ""
	}
	if list.Next != 0 {
		next := url.Values{"before": {list.Next.String()}}
		for _, name := range filters {
			if v := q.Get(name); v != "" {
				next.Set(name, v)
			}
		}
		data.Next = "/?" + next.Encode()
	}
	return s.html(w, http.StatusOK, "runs", data)
}

func (s *Server) runPage(w http.ResponseWriter, r *request) error {
	d, attempt, err := s.runDetail(r)
	if err != nil {
		return err
	}
	data := runData{layout: layout{Title: runTitle(d.Run), Version: s.cfg.Version}, RunDetail: d, Attempt: attempt, Trusted: r.access.trusted}
	if data.Artifacts, err = s.artifacts(r.Context(), d.Run.ID); err != nil {
		return err
	}
	data.Notes = notesFor(d)
	if attempt == d.Run.Attempt {
		data.Waiting = Waiting(d.Run, d.Jobs)
	}
	if s.cfg.Learned != nil {
		data.Estimates = map[tgr.JobID]time.Duration{}
		for _, j := range d.Jobs {
			if !j.Status.Done() {
				data.Estimates[j.ID] = s.cfg.Learned.Estimate(d.Run, j)
			}
		}
	}
	if !d.Run.Status.Done() && attempt == d.Run.Attempt {
		data.Live = "/api/runs/" + d.Run.ID.String() + "/events"
	}
	return s.html(w, http.StatusOK, "run", data)
}

// notesFor is the notes of a run without those about jobs of other attempts.
func notesFor(d RunDetail) *tgr.Notes {
	if d.Notes == nil {
		return nil
	}
	n := *d.Notes
	n.Explanations = slices.DeleteFunc(slices.Clone(n.Explanations), func(e tgr.Explanation) bool {
		return !slices.ContainsFunc(d.Jobs, func(j tgr.Job) bool { return j.ID == e.Job })
	})
	return &n
}

func (s *Server) jobPage(w http.ResponseWriter, r *request) error {
	from, err := number(r.URL.Query().Get("from"), "from", 1, maxLine)
	if err != nil {
		return err
	}
	job, run, err := s.job(r)
	if err != nil {
		return err
	}
	data := jobData{layout: layout{Title: jobTitle(job), Version: s.cfg.Version}, Run: run, Job: job,
		Try: max(job.Tries, 1), From: int(from), NextLine: int(from), Step: -1, Trusted: r.access.trusted}
	size, lines := 0, 0
	view := logView{job: job}
	for l, err := range s.readLog(r.Context(), job.ID, job.Tries, int(from)-1) {
		if err != nil {
			return err
		}
		if lines == pageLines || size > pageBytes {
			data.More = true
			break
		}
		view.line(data.NextLine, l)
		data.Step = l.Step
		data.NextLine++
		lines++
		size += min(len(l.Text), pageLine) + 100
	}
	data.Steps, data.Group = view.steps, view.group
	if !data.More && !job.Status.Done() {
		data.Live = "/api/jobs/" + job.ID.String() + "/log/stream?spans=1"
	}
	return s.html(w, http.StatusOK, "job", data)
}

// shown is as much of a line as a page shows.
func shown(text string) string {
	if len(text) <= pageLine {
		return text
	}
	return cut(text, pageLine) + fmt.Sprintf(" (%d bytes more in the raw log)", len(text)-pageLine)
}

func heading(job tgr.Job, step int) string {
	if step == 0 {
		return "Job"
	}
	for _, s := range job.Steps {
		if s.Number == step {
			return fmt.Sprintf("Step %d: %s", step, Plain(s.Name))
		}
	}
	return fmt.Sprintf("Step %d", step)
}

// state is the one word for where something is: its conclusion if it has one. It is also the CSS class.
func state(s tgr.Status, c tgr.Conclusion) string {
	if c != "" {
		return known(string(c), conclusions)
	}
	return known(string(s), runStatuses)
}

// mark goes with the state, so that colour is never the only sign.
func mark(state string) string {
	switch state {
	case "success":
		return "✓"
	case "failure", "timed_out", "startup_failure":
		return "✗"
	case "cancelled":
		return "⊘"
	case "skipped":
		return "–"
	case "in_progress":
		return "●"
	}
	return "○"
}

// level is the level of an annotation: what is none of the three counts as a notice.
func level(s string) string {
	if s == "error" || s == "warning" {
		return s
	}
	return "notice"
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// took is how long something took, to the tenth of a second below a minute; nothing until it has ended.
func took(start, end time.Time) string {
	if start.IsZero() || end.IsZero() || end.Before(start) {
		return ""
	}
	d := end.Sub(start)
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// multiline keeps the line breaks of a message, and nothing else that would control a display.
func multiline(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = Plain(l)
	}
	return strings.Join(lines, "\n")
}

// stepID is the id of the element that has a step's lines.
func stepID(number int) string { return fmt.Sprintf("step-%d", number) }

// exited tells the exit status of a process that failed.
func exited(code *int) string {
	if code == nil || *code == 0 {
		return ""
	}
	return fmt.Sprintf(", exit status %d", *code)
}

// unmarked is a line of a log without the runner's mark at its beginning.
func unmarked(s string) string {
	if mark, rest, ok := strings.Cut(s, "]"); ok && strings.HasPrefix(mark, "##[") {
		return Plain(rest)
	}
	return Plain(s)
}

func ref(s string) string {
	for _, prefix := range []string{"refs/heads/", "refs/tags/", "refs/"} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			return Plain(rest)
		}
	}
	return Plain(s)
}

// approval is the body by which a button approves an environment, or the run, or rejects it.
func approval(environment string, reject bool) (string, error) {
	b, err := json.Marshal(ApproveRequest{Environment: environment, Reject: reject, By: "the page"})
	return string(b), err
}

func runTitle(r tgr.Run) string {
	return name(r.Title, r.WorkflowName, r.WorkflowFile, r.Event.Name)
}

func jobTitle(j tgr.Job) string { return name(j.Name, j.Key, string(j.Kind)) }

// name is the first of the names that shows anything, at a length that a page bears.
func name(names ...string) string {
	for _, n := range names {
		if n = strings.TrimSpace(Plain(cut(n, 300))); n != "" {
			return n
		}
	}
	return "unnamed"
}

// size is a number of bytes for people.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, unit := float64(n)/1024, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, next
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
