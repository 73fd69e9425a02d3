package web

import (
	"cmp"
	"context"
	"errors"
	"net/http"

	"github.com/terraphim/tgr"
)

// The kinds of settings.
const (
	Secret   = "secret"
	Variable = "variable"
)

// Keeper keeps secrets, variables and environments. What is not there is an error with the code NotFound.
type Keeper interface {
	// Settings lists those of a kind and of exactly one scope; secrets without their values.
	Settings(ctx context.Context, kind string, s tgr.Scope) ([]tgr.Setting, error)
	SetSetting(ctx context.Context, kind string, s tgr.Setting) error
	RemoveSetting(ctx context.Context, kind string, s tgr.Setting) error
	// Rotate seals all secrets with a new key and returns how many there are.
	Rotate(ctx context.Context) (int, error)
	Environments(ctx context.Context, repo string) ([]tgr.Environment, error)
	SetEnvironment(ctx context.Context, e tgr.Environment) error
	// RemoveEnvironment also removes the secrets and variables of the environment.
	RemoveEnvironment(ctx context.Context, repo, name string) error
}

// SettingRequest is the body of POST /api/secrets and /api/variables, and, without a value, of their /remove.
type SettingRequest struct {
	Owner       string `json:"owner,omitempty"`       // an account; or
	Repo        string `json:"repo,omitempty"`        // owner/name
	Environment string `json:"environment,omitempty"` // of the repository
	Name        string `json:"name"`
	Value       string `json:"value,omitempty"`
}

func (r SettingRequest) setting() tgr.Setting {
	return tgr.Setting{Scope: tgr.Scope{Owner: r.Owner, Repo: r.Repo, Environment: r.Environment}, Name: r.Name, Value: r.Value}
}

// SettingList is the answer to GET /api/secrets and /api/variables.
type SettingList struct {
	Settings []tgr.Setting `json:"settings"`
}

// EnvironmentList is the answer to GET /api/environments.
type EnvironmentList struct {
	Environments []tgr.Environment `json:"environments"`
}

// EnvironmentName is the body of POST /api/environments/remove.
type EnvironmentName struct {
	Repo string `json:"repo"`
	Name string `json:"name"`
}

// Done is the answer to a change that has been made.
type Done struct {
	Message string `json:"message"`
	Count   int    `json:"count,omitempty"` // of secrets, after a rotation
}

// ApproveRequest is the body of POST /api/runs/{id}/approve.
type ApproveRequest struct {
	Environment string `json:"environment,omitempty"` // ""; the run that is on hold, or the only environment that waits
	Reject      bool   `json:"reject,omitempty"`
	Comment     string `json:"comment,omitempty"`
	By          string `json:"by,omitempty"` // who decided: shown, not trusted
}

// keeper is the Keeper, for a request that may see what it keeps: names of secrets tell something too.
func (s *Server) keeper(r *request) (Keeper, error) {
	if !r.access.trusted {
		return nil, forbid("this server has no token, and then shows its settings only on its own machine")
	}
	if s.cfg.Settings == nil {
		return nil, tgr.Errorf("web", tgr.NotFound, "this server keeps no secrets")
	}
	return s.cfg.Settings, nil
}

func listSettings(kind string) func(*Server, http.ResponseWriter, *request) error {
	return func(s *Server, w http.ResponseWriter, r *request) error {
		k, err := s.keeper(r)
		if err != nil {
			return err
		}
		q := r.URL.Query()
		list, err := k.Settings(r.Context(), kind, tgr.Scope{Owner: q.Get("owner"), Repo: q.Get("repo"), Environment: q.Get("environment")})
		if err != nil {
			return err
		}
		if list == nil {
			list = []tgr.Setting{}
		}
		s.json(w, r.Request, http.StatusOK, SettingList{list})
		return nil
	}
}

// changeSetting sets or removes a setting.
func changeSetting(kind string, remove bool) func(*Server, http.ResponseWriter, *request) error {
	return func(s *Server, w http.ResponseWriter, r *request) error {
		k, err := s.keeper(r)
		if err != nil {
			return err
		}
		var body SettingRequest
		if err := decode(w, r, &body, false); err != nil {
			return err
		}
		change, verb := k.SetSetting, "set"
		if remove {
			change, verb = k.RemoveSetting, "removed"
		}
		set := body.setting()
		if err := change(r.Context(), kind, set); err != nil {
			return err
		}
		s.log.Info(kind+" "+verb, "scope", set.Scope.String(), "name", set.Name, "peer", r.RemoteAddr)
		s.json(w, r.Request, http.StatusOK, Done{Message: kind + " " + set.Name + " of " + set.Scope.String() + " " + verb})
		return nil
	}
}

func (s *Server) rotateKey(w http.ResponseWriter, r *request) error {
	k, err := s.keeper(r)
	if err != nil {
		return err
	}
	n, err := k.Rotate(r.Context())
	if err != nil {
		return err
	}
	s.log.Info("the key of the secrets was changed", "secrets", n, "peer", r.RemoteAddr)
	s.json(w, r.Request, http.StatusOK, Done{Message: "all secrets are sealed with a new key", Count: n})
	return nil
}

func (s *Server) listEnvironments(w http.ResponseWriter, r *request) error {
	k, err := s.keeper(r)
	if err != nil {
		return err
	}
	list, err := k.Environments(r.Context(), r.URL.Query().Get("repo"))
	if err != nil {
		return err
	}
	if list == nil {
		list = []tgr.Environment{}
	}
	s.json(w, r.Request, http.StatusOK, EnvironmentList{list})
	return nil
}

func (s *Server) setEnvironment(w http.ResponseWriter, r *request) error {
	k, err := s.keeper(r)
	if err != nil {
		return err
	}
	var e tgr.Environment
	if err := decode(w, r, &e, false); err != nil {
		return err
	}
	if err := e.Validate(); err != nil {
		return err
	}
	if err := k.SetEnvironment(r.Context(), e); err != nil {
		return err
	}
	s.log.Info("environment set", "repo", e.Repo, "name", e.Name, "peer", r.RemoteAddr)
	s.json(w, r.Request, http.StatusOK, Done{Message: "environment " + e.Name + " of " + e.Repo + " set"})
	return nil
}

func (s *Server) removeEnvironment(w http.ResponseWriter, r *request) error {
	k, err := s.keeper(r)
	if err != nil {
		return err
	}
	var e EnvironmentName
	if err := decode(w, r, &e, false); err != nil {
		return err
	}
	if err := k.RemoveEnvironment(r.Context(), e.Repo, e.Name); err != nil {
		return err
	}
	s.log.Info("environment removed", "repo", e.Repo, "name", e.Name, "peer", r.RemoteAddr)
	s.json(w, r.Request, http.StatusOK, Done{Message: "environment " + e.Name + " of " + e.Repo + " removed, with its secrets and variables"})
	return nil
}

func (s *Server) approve(w http.ResponseWriter, r *request) error {
	var a ApproveRequest
	if err := decode(w, r, &a, true); err != nil {
		return err
	}
	if err := errors.Join(bounded(a.Comment, "comment", maxText), bounded(a.By, "by", maxName), bounded(a.Environment, "environment", maxName)); err != nil {
		return err
	}
	run, err := s.run(r)
	if err != nil {
		return err
	}
	a.By = cmp.Or(a.By, nobody)
	environment, err := s.cfg.Control.Approve(r.Context(), run.ID, a)
	if err != nil {
		return err
	}
	message := map[bool]string{false: "approved", true: "rejected"}[a.Reject]
	s.log.Info(message, "run", run.ID, "environment", environment, "by", a.By, "peer", r.RemoteAddr)
	if environment != "" {
		message = "environment " + environment + " " + message
	}
	s.json(w, r.Request, http.StatusAccepted, Accepted{Message: message, Runs: []tgr.RunID{run.ID}})
	return nil
}

// Waiting lists what a run waits for somebody to approve: "" for the run as a whole, else environments. Jobs are those of
// its current attempt.
func Waiting(run tgr.Run, jobs []tgr.Job) []string {
	if run.Status.Done() {
		return nil
	}
	if run.Hold != "" {
		if run.CancelReason != "" {
			return nil
		}
		return []string{""}
	}
	var out []string
	seen := map[string]bool{}
	for _, j := range jobs {
		if j.Gated && j.Environment != "" && j.Attempt == run.Attempt && run.Approval(j.Environment) == nil && !seen[j.Environment] {
			seen[j.Environment] = true
			out = append(out, j.Environment)
		}
	}
	return out
}
