package web

import (
	"fmt"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/terraphim/tgr"
)

// learntData is the page of all repositories of which something was learnt.
type learntData struct {
	layout
	Learnt []tgr.Learnt
}

// insightsData is the page of one of them.
type insightsData struct {
	layout
	tgr.Insights
	Groups []timingGroup
	Other  string // URL of the same page for the forks, or for all but them
}

// timingGroup is a job with its steps.
type timingGroup struct {
	tgr.Timing
	Steps []tgr.Timing
	Scale time.Duration // what the bars of the page are as long as
}

// insightsPage shows what was learnt of a repository; without one, of which there is something.
func (s *Server) insightsPage(w http.ResponseWriter, r *request) error {
	if !r.URL.Query().Has("repo") {
		return s.learntPage(w, r)
	}
	in, err := s.learnt(r)
	if err != nil {
		return err
	}
	other := url.Values{"repo": {in.Repo}}
	if !in.Forks {
		other.Set("forks", "true")
	}
	return s.html(w, http.StatusOK, "insights", insightsData{layout: layout{Title: "Insights", Version: s.cfg.Version}, Insights: in,
		Groups: grouped(in.Timings), Other: "/insights?" + other.Encode()})
}

func (s *Server) learntPage(w http.ResponseWriter, r *request) error {
	if s.cfg.Learned == nil {
		return errLearnsNothing()
	}
	list, err := s.cfg.Learned.Learnt(r.Context())
	if err != nil {
		return err
	}
	data := learntData{layout: layout{Title: "Insights", Version: s.cfg.Version}}
	for _, l := range list {
		if !l.Private || r.access.trusted {
			data.Learnt = append(data.Learnt, l)
		}
	}
	return s.html(w, http.StatusOK, "learnt", data)
}

// grouped puts steps below their jobs, in the order of the jobs. Steps whose job is not among them are left out.
func grouped(timings []tgr.Timing) []timingGroup {
	var out []timingGroup
	at := map[[2]string]int{}
	scale := time.Duration(1)
	for _, t := range timings {
		if t.Step == "" {
			at[[2]string{t.Workflow, t.Job}] = len(out)
			out = append(out, timingGroup{Timing: t})
			scale = max(scale, t.P90, t.Median)
		}
	}
	for _, t := range timings {
		if i, ok := at[[2]string{t.Workflow, t.Job}]; ok && t.Step != "" {
			out[i].Steps = append(out[i].Steps, t)
		}
	}
	for i := range out {
		out[i].Scale = scale
	}
	return out
}

// bar is the length of a duration on a scale, of 100.
func bar(d, scale time.Duration) int {
	if d <= 0 || scale <= 0 {
		return 0
	}
	return int(max(1, min(100, math.Round(100*float64(d)/float64(scale)))))
}

// lasts is a duration for people; "" where it is not known.
func lasts(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// percent is a share for people.
func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*min(max(share, 0), 1)) }

// insightsOf is the address of what was learnt of a repository.
func insightsOf(repo string, forks bool) string {
	q := url.Values{"repo": {repo}}
	if forks {
		q.Set("forks", "true")
	}
	return "/insights?" + q.Encode()
}
