package web

import (
	"context"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
)

// What is scheduled in a private repository is shown to those who may see its runs; a wrong name is refused.
func TestSchedules(t *testing.T) {
	m := newMemory()
	all := []tgr.Schedule{
		{Repo: tgr.Repo{FullName: "a/open"}, File: "o.yml", Cron: "0 4 * * *"},
		{Repo: tgr.Repo{FullName: "a/closed", Private: true}, File: "c.yml", Cron: "0 5 * * *", Timezone: "Asia/Tokyo"},
	}
	s, err := New(Config{Runs: m, Logs: m, Control: m, Schedules: func(_ context.Context, repo string) ([]tgr.Schedule, error) {
		if repo != "" {
			return nil, nil
		}
		return all, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	off, err := New(Config{Runs: m, Logs: m, Control: m})
	if err != nil {
		t.Fatal(err)
	}
	const here, there = "127.0.0.1:1", "192.0.2.7:9999"
	for _, tt := range []struct {
		name   string
		s      *Server
		path   string
		peer   string
		status int
		open   bool
		closed bool
	}{
		{"to this machine", s, "/api/schedules", here, 200, true, true},
		{"to a stranger", s, "/api/schedules", there, 200, true, false},
		{"of a repository", s, "/api/schedules?repo=a/b", here, 200, false, false},
		{"of no repository", s, "/api/schedules?repo=../b", here, 400, false, false},
		{"where nothing is scheduled", off, "/api/schedules", here, 503, false, false},
	} {
		host := map[string]string{here: "localhost", there: "ci.example.com"}[tt.peer]
		status, body := knock(t, tt.s, "GET", tt.path, tt.peer, host)
		if status != tt.status || strings.Contains(body, "a/open") != tt.open || strings.Contains(body, "Asia/Tokyo") != tt.closed {
			t.Errorf("%s: %d %s", tt.name, status, body)
		}
	}
}
