package web

import (
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// logStep is the log of one step on a page, which folds.
type logStep struct {
	Number int
	ID     string // of the element; "" for what comes after another step's lines
	Name   string
	State  string // "" where the lines are of no step
	Took   string
	Open   bool
	Items  []logItem
}

// logItem is a line of a log, or a group that begins with one and folds.
type logItem struct {
	logRow
	Group bool
	Open  bool
	Lines []logRow
}

// logRow is a line of a log on a page.
type logRow struct {
	Line  int
	Stamp string
	Spans []Span
}

// logView puts the lines of a job's log in order: steps, groups within them, lines.
type logView struct {
	job   tgr.Job
	steps []logStep
	ids   map[int]bool
	group bool // the next line is in the last item, which is a group
}

// line adds a line. Only the marks at its beginning tell a group; a step may print them too.
func (v *logView) line(n int, l tgr.LogLine) {
	text := shown(l.Text)
	if len(v.steps) == 0 || v.steps[len(v.steps)-1].Number != l.Step {
		v.begin(l.Step)
	}
	step := &v.steps[len(v.steps)-1]
	row := logRow{Line: n, Stamp: l.Time.UTC().Format(time.RFC3339Nano), Spans: logSpans(text)}
	switch {
	case strings.HasPrefix(text, "##[endgroup]"):
		v.group = false
	case strings.HasPrefix(text, "##[group]"):
		step.Items = append(step.Items, logItem{logRow: row, Group: true})
		v.group = true
	case v.group:
		last := &step.Items[len(step.Items)-1]
		last.Lines = append(last.Lines, row)
		last.Open = last.Open || strings.HasPrefix(text, "##[error]") // what broke is seen
	default:
		step.Items = append(step.Items, logItem{logRow: row})
	}
}

func (v *logView) begin(number int) {
	v.group = false
	s := logStep{Number: number, Name: "Job", Open: true}
	if number > 0 {
		s.Name = heading(v.job, number)
	}
	for _, st := range v.job.Steps {
		if number > 0 && st.Number == number {
			s.State, s.Took = state(st.Status, st.Conclusion), took(st.Started, st.Finished)
			s.Open = v.opens(st)
		}
	}
	if !v.ids[number] {
		s.ID = stepID(number)
	}
	if v.ids == nil {
		v.ids = map[int]bool{}
	}
	v.ids[number] = true
	v.steps = append(v.steps, s)
}

// opens reports whether a step's lines are seen at first: not those that are the same for every job, and of a job that
// failed those of what failed.
func (v *logView) opens(st tgr.Step) bool {
	if st.Conclusion.Failed() || st.Outcome.Failed() || !st.Status.Done() {
		return true
	}
	return st.ID != "__setup" && st.ID != "__complete" && !v.job.Conclusion.Failed()
}
