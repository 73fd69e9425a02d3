package web

import (
	"context"
	"net/http"

	"github.com/terraphim/tgr"
)

// ArtifactStore is where the artifacts of runs are.
type ArtifactStore interface {
	// Artifacts lists those of a run that can be downloaded, the oldest first.
	Artifacts(ctx context.Context, run tgr.RunID) ([]tgr.Artifact, error)
	// Artifact returns one by its id, or an error with the code tgr.NotFound.
	Artifact(ctx context.Context, id int64) (tgr.Artifact, error)
	// ServeArtifact answers GET and HEAD with the bytes, as a download that no browser takes for a page. The error, if
	// any, is from before the first byte.
	ServeArtifact(w http.ResponseWriter, r *http.Request, id int64) error
}

// ArtifactList is the answer to GET /api/runs/{id}/artifacts.
type ArtifactList struct {
	Artifacts []tgr.Artifact `json:"artifacts"`
}

func (s *Server) listArtifacts(w http.ResponseWriter, r *request) error {
	run, err := s.run(r)
	if err != nil {
		return err
	}
	list, err := s.artifacts(r.Context(), run.ID)
	if err != nil {
		return err
	}
	s.json(w, r.Request, http.StatusOK, ArtifactList{list})
	return nil
}

func (s *Server) artifacts(ctx context.Context, run tgr.RunID) ([]tgr.Artifact, error) {
	if s.cfg.Artifacts == nil {
		return []tgr.Artifact{}, nil
	}
	return s.cfg.Artifacts.Artifacts(ctx, run)
}

// downloadArtifact answers with the bytes of an artifact to whoever may see its run. To others it is not there.
func (s *Server) downloadArtifact(w http.ResponseWriter, r *request) error {
	missing := tgr.Errorf("web", tgr.NotFound, "there is no artifact %s", cut(r.PathValue("id"), 30))
	id, err := number(r.PathValue("id"), "id", 0, 0)
	if err != nil || s.cfg.Artifacts == nil {
		return missing
	}
	a, err := s.cfg.Artifacts.Artifact(r.Context(), id)
	if err != nil {
		return err
	}
	run, err := s.cfg.Runs.Run(r.Context(), a.Run)
	if tgr.CodeOf(err) == tgr.NotFound || err == nil && run.Event.Repo.Private && !r.access.trusted {
		return missing
	}
	if err != nil {
		return err
	}
	return s.cfg.Artifacts.ServeArtifact(w, r.Request, id)
}
