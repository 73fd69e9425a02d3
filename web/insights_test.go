package web

import (
	"context"
	"fmt"
	"html"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// learned knows two repositories.
type learned struct{ asked []string }

func (l *learned) Insights(_ context.Context, repo string, forks bool, command string) (tgr.Insights, error) {
	l.asked = append(l.asked, repo+" "+command)
	if repo != "o/open" && repo != "o/secret" {
		return tgr.Insights{}, tgr.Errorf("insights", tgr.NotFound, "nothing was learnt of %q", repo)
	}
	return tgr.Insights{Repo: repo, Private: repo == "o/secret", Forks: forks, Jobs: 9, Timings: []tgr.Timing{{Workflow: "ci.yml", N: 9}}, NotMeasured: []string{"memory"}}, nil
}

func (l *learned) Estimate(tgr.Run, tgr.Job) time.Duration { return 0 }

func (l *learned) Learnt(context.Context) ([]tgr.Learnt, error) {
	return []tgr.Learnt{{Repo: "o/open", Jobs: 9, Until: time.Unix(1_700_000_000, 0)}, {Repo: "o/secret", Private: true, Jobs: 3}, {Repo: "o/open", Forks: true, Jobs: 2}}, nil
}

func TestInsights(t *testing.T) {
	l := &learned{}
	s := newSite(t, newMemory(), func(c *Config) { c.Learned = l; c.Token = "" })
	c, err := NewClient(s.url, "")
	if err != nil {
		t.Fatal(err)
	}
	in, err := c.Insights(t.Context(), "o/open", true, "npm ci")
	want := tgr.Insights{Repo: "o/open", Forks: true, Jobs: 9, Timings: []tgr.Timing{{Workflow: "ci.yml", N: 9}}, NotMeasured: []string{"memory"}}
	if diff := cmp.Diff(want, in); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := c.Insights(t.Context(), "o/none", false, ""); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("of a repository that is not known: %v", err)
	}
	for _, query := range []string{"", "?repo=x", "?repo=o/open&forks=maybe", "?repo=o/open&nonsense=1", "?repo=o/open&repo=o/open"} {
		if resp, body := ask(t, "GET", s.url+"/api/insights"+query, ""); resp.StatusCode != 400 {
			t.Errorf("%q: %d %s", query, resp.StatusCode, body)
		}
	}
	if diff := cmp.Diff([]string{"o/open npm ci", "o/none "}, l.asked); diff != "" {
		t.Error(diff)
	}
}

// Without a learner the API says how to have one.
func TestInsightsOff(t *testing.T) {
	s := newSite(t, newMemory(), func(*Config) {})
	c, err := NewClient(s.url, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Insights(t.Context(), "o/open", false, ""); tgr.CodeOf(err) != tgr.Unavailable {
		t.Errorf("it says %v", err)
	}
}

// Of a private repository nothing is told to who may not see it: it looks as one of which nothing was learnt.
func TestInsightsPrivate(t *testing.T) {
	m := newMemory()
	s, err := New(Config{Runs: m, Logs: m, Control: m, Learned: &learned{}})
	if err != nil {
		t.Fatal(err)
	}
	if status, body := knock(t, s, "GET", "/api/insights?repo=o/secret", "192.0.2.7:9999", "ci.example.com"); status != 404 {
		t.Errorf("a stranger gets %d %s", status, body)
	}
	for _, repo := range []string{"o/secret", "o/open"} {
		if status, body := knock(t, s, "GET", "/api/insights?repo="+repo, "127.0.0.1:1", "localhost"); status != 200 {
			t.Errorf("%s: %d %s on this machine", repo, status, body)
		}
	}
	if status, _ := knock(t, s, "GET", "/api/insights?repo=o/open", "192.0.2.7:9999", "ci.example.com"); status != 200 {
		t.Errorf("a public one: %d", status)
	}
}

// sampleInsights has one of everything, and text that must not be believed.
func sampleInsights(text string) tgr.Insights {
	runs := []tgr.RunID{7, 8}
	return tgr.Insights{Repo: "acme/bridge", Jobs: 120, Ours: 2, Until: time.Unix(1_700_000_000, 0).UTC(),
		Timings: []tgr.Timing{
			{Workflow: "ci.yml", Job: text, N: 40, Enough: true, Success: 0.93, Low: 0.8, High: 0.98, Median: 90 * time.Second, P90: 2 * time.Minute, Timeout: 6 * time.Minute,
				Slower: 1.5, CPU: 150 * time.Second, PeakMiB: 800, MemoryMiB: 1040, MemoryOf: runs[:1], Evidence: runs},
			{Workflow: "ci.yml", Job: "new", N: 3, Evidence: runs[1:]},
			{Workflow: "ci.yml", Job: text, Step: text, N: 40, Enough: true, Success: 0.4, Low: 0.3, High: 0.5, Median: 59 * time.Second, P90: time.Minute, Evidence: runs},
			{Workflow: "ci.yml", Job: "whose job is not listed", Step: "test", N: 40},
		},
		Flaky:    []tgr.Flake{{Workflow: "ci.yml", Job: "test", Step: text, Definite: true, Rate: 0.1, FlipRate: 0.2, Evidence: runs}},
		Failures: []tgr.Cluster{{ID: "1", Sample: text, N: 3, Jobs: []string{text}, Also: []tgr.Link{{To: text, N: 3, Low: 0.5, Evidence: runs}}, Fixes: []tgr.Link{{To: text, N: 1, Evidence: runs[1:]}}, Evidence: runs}},
		Lessons:  []tgr.Lesson{{Command: text, Failure: text, N: 3, Confidence: 0.44, Fix: text, Evidence: runs}},
		Risks:    []tgr.Risk{{File: text, Workflow: "ci.yml", Job: text, N: 9, Low: 0.6, Usual: 0.1, Evidence: runs}},
		Suggestions: []tgr.Suggestion{
			{Kind: tgr.SuggestCache, Text: text, Confidence: 0.9, Saves: 73 * time.Second, Evidence: runs},
			{Kind: tgr.SuggestMemory, Workflow: "ci.yml", Job: "test", Step: text, Text: text, Confidence: 0.7, Evidence: runs},
		},
		NotMeasured: []string{text}}
}

// know is a learner of one repository.
type know tgr.Insights

func (k know) Insights(context.Context, string, bool, string) (tgr.Insights, error) {
	return tgr.Insights(k), nil
}

func (k know) Estimate(_ tgr.Run, j tgr.Job) time.Duration {
	return map[string]time.Duration{"test": 192 * time.Second}[j.Key]
}

func (k know) Learnt(context.Context) ([]tgr.Learnt, error) {
	return []tgr.Learnt{{Repo: k.Repo, Jobs: k.Jobs, Until: k.Until}, {Repo: k.Repo, Forks: true, Jobs: 1}}, nil
}

func TestInsightsPage(t *testing.T) {
	s := newSite(t, newMemory(), func(c *Config) { c.Learned = know(sampleInsights("test & deploy")) })
	for name, path := range map[string]string{"insights.html": "/insights?repo=acme%2Fbridge", "learnt.html": "/insights"} {
		answer, page := ask(t, "GET", s.url+path, "")
		if answer.StatusCode != 200 || answer.Header.Get("Content-Security-Policy") != csp {
			t.Errorf("%s: %d, policy %q", path, answer.StatusCode, answer.Header.Get("Content-Security-Policy"))
		}
		wellFormed(t, path, page)
		golden(t, name, page)
	}
	if answer, page := ask(t, "GET", s.url+"/insights?repo=acme", ""); answer.StatusCode != 400 || !strings.Contains(page, "should be owner/name") {
		t.Errorf("of no repository: %d\n%s", answer.StatusCode, page)
	}
	_, page := ask(t, "GET", s.url+"/insights?repo=acme%2Fbridge", "")
	for _, link := range regexp.MustCompile(`href="(/[^"]*)"`).FindAllStringSubmatch(page, -1) {
		if target := html.UnescapeString(link[1]); strings.HasPrefix(target, "/insights") || strings.HasPrefix(target, "/?repo") {
			if answer, _ := ask(t, "GET", s.url+target, ""); answer.StatusCode != 200 {
				t.Errorf("the link %s leads to %d", target, answer.StatusCode)
			}
		}
	}
}

// Names, commands and lines are hostile: on the page they are text, and nothing of them has a say in how it looks.
func TestInsightsPageHostile(t *testing.T) {
	in := sampleInsights(hostile)
	in.Repo = hostile
	s := newSite(t, newMemory(), func(c *Config) { c.Learned = know(in) })
	for _, path := range []string{"/insights?repo=acme%2Fbridge", "/insights"} {
		_, page := ask(t, "GET", s.url+path, "")
		if !strings.Contains(page, "&lt;script&gt;alert(1)") {
			t.Errorf("%s does not show the text", path)
		}
		isText(t, path, page)
	}
}

// Nothing about a private repository, not even that it is there, is told to who may not see it; without a learner it is said
// how to have one.
func TestInsightsPageAccess(t *testing.T) {
	m := newMemory()
	s, err := New(Config{Runs: m, Logs: m, Control: m, Learned: &learned{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, peer, host string
		status           int
		secret           bool
	}{
		{"/insights", "192.0.2.7:9999", "ci.example.com", 200, false},
		{"/insights", "127.0.0.1:1", "localhost", 200, true},
		{"/insights?repo=o/secret", "192.0.2.7:9999", "ci.example.com", 404, false},
		{"/insights?repo=o/secret", "127.0.0.1:1", "localhost", 200, true},
	} {
		status, body := knock(t, s, "GET", tt.path, tt.peer, tt.host)
		if status != tt.status || tt.status == 200 && strings.Contains(body, "o/secret") != tt.secret {
			t.Errorf("%s for %s: %d\n%s", tt.path, tt.peer, status, body)
		}
	}
	off, err := New(Config{Runs: m, Logs: m, Control: m})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/insights", "/insights?repo=o/r"} {
		if status, body := knock(t, off, "GET", path, "127.0.0.1:1", "localhost"); status != 503 || !strings.Contains(body, "TGR_LEARN=true") {
			t.Errorf("%s without a learner: %d\n%s", path, status, body)
		}
	}
}

// The page of a run says how long the jobs are likely to take that have not ended, where that is known.
func TestEstimates(t *testing.T) {
	m := newMemory()
	run := sampleRun()
	run.Status, run.Conclusion, run.Finished = tgr.InProgress, "", time.Time{}
	m.setRun(run)
	for i, tt := range []struct {
		key    string
		status tgr.Status
	}{{"test", tgr.InProgress}, {"test", tgr.Completed}, {"new", tgr.InProgress}} {
		job := sampleJobs()[0]
		job.ID, job.Key, job.Name, job.Status, job.Isolation = tgr.JobID(70+i), tt.key, fmt.Sprint("job-", i), tt.status, "qemu"
		if job.Conclusion = ""; tt.status.Done() {
			job.Conclusion = tgr.Success
		} else {
			job.Finished = time.Time{}
		}
		m.setJob(job)
	}
	s := newSite(t, m, func(c *Config) { c.Learned = know{} })
	_, page := ask(t, "GET", s.url+"/runs/7", "")
	if n := strings.Count(page, "usually takes"); n != 1 || !strings.Contains(page, "in progress</span>, usually takes 3m12s in qemu") {
		t.Errorf("%d estimates, want one, of the first job:\n%s", n, page)
	}
}

// A bar is as long as what it shows, and never longer than the page.
func TestBar(t *testing.T) {
	for _, tt := range []struct {
		d, scale time.Duration
		want     int
	}{{0, time.Second, 0}, {1, time.Hour, 1}, {time.Minute, 2 * time.Minute, 50}, {time.Hour, time.Minute, 100}, {-1, time.Minute, 0}, {time.Minute, 0, 0}} {
		if got := bar(tt.d, tt.scale); got != tt.want {
			t.Errorf("bar(%v, %v) = %d, want %d", tt.d, tt.scale, got, tt.want)
		}
	}
}
