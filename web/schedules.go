package web

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/terraphim/tgr"
)

// Scheduled is when a workflow is started next by its on.schedule.
type Scheduled struct {
	Repo     string    `json:"repo"`               // owner/name
	Workflow string    `json:"workflow"`           // path of the workflow file on the default branch
	Cron     string    `json:"cron"`               // as it is written there
	Timezone string    `json:"timezone,omitempty"` // IANA name; "": UTC
	Next     time.Time `json:"next"`
}

// ScheduleList is what is started next, the soonest first.
type ScheduleList struct {
	Schedules []Scheduled `json:"schedules"`
}

// listSchedules lists what is scheduled, of a repository or of all. Those of private ones are shown to who may see their runs.
func (s *Server) listSchedules(w http.ResponseWriter, r *request) error {
	repo := r.URL.Query().Get("repo")
	if repo != "" && !repoName().MatchString(repo) {
		return invalid("repo is %q, and should be owner/name", cut(repo, 100))
	}
	if s.cfg.Schedules == nil {
		return tgr.Errorf("web", tgr.Unavailable, "nothing is started by its schedule here: set TGR_SCHEDULES=true")
	}
	all, err := s.cfg.Schedules(r.Context(), repo)
	if err != nil {
		return err
	}
	list := ScheduleList{[]Scheduled{}}
	for _, e := range all {
		if !e.Repo.Private || r.access.trusted {
			list.Schedules = append(list.Schedules, Scheduled{e.Repo.FullName, e.File, e.Cron, e.Timezone, e.Next})
		}
	}
	s.json(w, r.Request, http.StatusOK, list)
	return nil
}

// Schedules lists what is scheduled, the soonest first; repo "": of all repositories.
func (c *Client) Schedules(ctx context.Context, repo string) (ScheduleList, error) {
	path := "/api/schedules"
	if repo != "" {
		path += "?" + url.Values{"repo": {repo}}.Encode()
	}
	return call[ScheduleList](ctx, c, http.MethodGet, path, nil)
}
