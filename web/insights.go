package web

import (
	"context"
	"net/http"
	"net/url"

	"github.com/terraphim/tgr"
)

// insights says what was learnt of a repository. A private one looks as if there were none to who may not see it.
func (s *Server) insights(w http.ResponseWriter, r *request) error {
	in, err := s.learnt(r)
	if err != nil {
		return err
	}
	s.json(w, r.Request, http.StatusOK, in)
	return nil
}

// learnt finds what a request asks for.
func (s *Server) learnt(r *request) (tgr.Insights, error) {
	q := r.URL.Query()
	repo, forks, command := q.Get("repo"), q.Get("forks"), q.Get("command")
	switch {
	case s.cfg.Learned == nil:
		return tgr.Insights{}, errLearnsNothing()
	case !repoName().MatchString(repo):
		return tgr.Insights{}, invalid("repo is %q, and should be owner/name", cut(repo, 100))
	case forks != "" && forks != "true" && forks != "false":
		return tgr.Insights{}, invalid("forks is %q, and should be true or false", cut(forks, 30))
	}
	if err := bounded(command, "command", maxName); err != nil {
		return tgr.Insights{}, err
	}
	in, err := s.cfg.Learned.Insights(r.Context(), repo, forks == "true", command)
	if err == nil && in.Private && !r.access.trusted {
		return tgr.Insights{}, tgr.Errorf("insights", tgr.NotFound, "nothing was learnt of %q: no job of it has ended yet", repo)
	}
	return in, err
}

func errLearnsNothing() error {
	return tgr.Errorf("web", tgr.Unavailable, "the learner is off: set TGR_LEARN=true")
}

// Insights returns what was learnt of a repository, or of its forks; command, if not "", is one to tell of.
func (c *Client) Insights(ctx context.Context, repo string, forks bool, command string) (tgr.Insights, error) {
	q := url.Values{"repo": {repo}}
	if forks {
		q.Set("forks", "true")
	}
	if command != "" {
		q.Set("command", command)
	}
	return call[tgr.Insights](ctx, c, http.MethodGet, "/api/insights?"+q.Encode(), nil)
}
