package results

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/terraphim/tgr"
)

// Cache is a saved cache.
type Cache struct {
	ID      int64     `json:"id"`
	Repo    string    `json:"repository"` // owner/name when it was saved
	Key     string    `json:"key"`
	Version string    `json:"version"`
	Ref     string    `json:"ref"`     // that may write it
	Trusted bool      `json:"trusted"` // saved by an event that only people with write access can cause
	Size    int64     `json:"size_bytes"`
	Created time.Time `json:"created_at"`
	Used    time.Time `json:"last_used_at"` // to the minute
}

// Caches lists the caches of a repository, by owner/name, or with "" of all, the most recently used first.
func (s *Service) Caches(ctx context.Context, repo string) ([]Cache, error) {
	list, err := find(ctx, s.meta.r, "WHERE kind = 'cache' AND state = 'done' AND (? = '' OR repo_name = ? COLLATE NOCASE) ORDER BY used DESC, id DESC", repo, repo)
	caches := []Cache{}
	for _, b := range list {
		caches = append(caches, Cache{b.id, b.repoName, b.name, b.version, b.scope, b.trusted, b.size, b.created, b.used})
	}
	return caches, err
}

// RemoveCaches removes caches by id. An unknown one is tgr.NotFound, and nothing is removed.
func (s *Service) RemoveCaches(ctx context.Context, ids ...int64) error {
	return s.meta.write(ctx, func(t *tx) error {
		for _, id := range ids {
			b, err := one(ctx, t.tx, "WHERE id = ? AND kind = 'cache' AND state = 'done'", id)
			if err != nil {
				return err
			}
			if b == nil {
				return tgr.Errorf("cache.remove", tgr.NotFound, "there is no cache %d", id)
			}
		}
		for _, id := range ids {
			if err := s.removeIn(t, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Artifacts lists the artifacts of a run, or with 0 of all runs, the oldest first.
func (s *Service) Artifacts(ctx context.Context, run tgr.RunID) ([]tgr.Artifact, error) {
	return s.artifacts(ctx, "AND (? = 0 OR run = ?) ORDER BY id", run, run)
}

// Artifact returns one artifact by its id. One that is not there is tgr.NotFound.
func (s *Service) Artifact(ctx context.Context, id int64) (tgr.Artifact, error) {
	list, err := s.artifacts(ctx, "AND id = ?", id)
	if err == nil && len(list) == 0 {
		err = tgr.Errorf("artifact.get", tgr.NotFound, "there is no artifact %d", id)
	}
	if err != nil {
		return tgr.Artifact{}, err
	}
	return list[0], nil
}

func (s *Service) artifacts(ctx context.Context, clause string, args ...any) ([]tgr.Artifact, error) {
	list, err := find(ctx, s.meta.r, "WHERE kind = 'artifact' AND state = 'done' AND expires > ? "+clause, append([]any{s.cfg.Now().UnixMicro()}, args...)...)
	artifacts := []tgr.Artifact{}
	for _, b := range list {
		artifacts = append(artifacts, tgr.Artifact{
			ID: b.id, Repo: b.repoName, Run: tgr.RunID(b.run), Attempt: int(b.attempt), Job: tgr.JobID(b.job), Name: b.name, Type: b.mime,
			Size: b.size, Digest: b.digest, Created: b.created, Expires: b.ends,
		})
	}
	return artifacts, err
}

// ServeArtifact answers GET and HEAD of an artifact, as a download and never as a page. Who may have it is the caller's
// to say. The error, if any, is from before the first byte.
func (s *Service) ServeArtifact(w http.ResponseWriter, r *http.Request, id int64) error {
	if _, err := s.Artifact(r.Context(), id); err != nil {
		return err
	}
	return s.send(w, r, id)
}

// CopyArtifact writes the bytes of an artifact to w.
func (s *Service) CopyArtifact(ctx context.Context, w io.Writer, id int64) error {
	defer s.hold(id)()
	if _, err := s.Artifact(ctx, id); err != nil {
		return err
	}
	list, err := parts(ctx, s.meta.r, id)
	if err != nil {
		return err
	}
	for _, p := range list {
		if err := s.copyPart(ctx, w, p.hash, 0, p.size, func() {}); err != nil {
			return err
		}
	}
	return nil
}
