package web

import (
	"context"
	"testing"

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
