package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/results"
)

// resultsConfig reads the settings of caches and artifacts.
func resultsConfig(c *config, log *slog.Logger) (results.Config, error) {
	dir := c.get("results-dir")
	if dir == "" {
		dir = filepath.Join(c.get("data-dir"), "results")
	}
	cache, err1 := c.number("cache-size", 1, 1<<30)
	artifacts, err2 := c.number("artifact-size", 1, 1<<30)
	days, err3 := c.number("artifact-retention", 1, 400)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return results.Config{}, err
		}
	}
	rc := results.Config{Dir: dir, Log: log, Limits: results.Limits{
		CacheBytes: int64(cache) << 20, ArtifactBytes: int64(artifacts) << 20, Retention: time.Duration(days) * 24 * time.Hour,
	}}
	if c.get("s3-url") != "" {
		blobs, err := results.NewS3(results.S3Config{URL: c.get("s3-url"), AccessKey: c.get("s3-access-key"), SecretKey: c.get("s3-secret-key"), Region: c.get("s3-region")})
		if err != nil {
			return rc, usageError{err}
		}
		rc.Blobs = blobs
	}
	return rc, nil
}

// services gives jobs the results services, which it opens for the first job that wants them.
type services struct {
	open func() (*results.Service, error)
	log  *slog.Logger
	// Of `tgr run`: its runs and jobs are numbered from 1 each time, and repositories have no numbers of their own.
	first tgr.RunID
	local bool
}

var _ dispatch.Services = (*services)(nil)

// localServices are those of `tgr run`. close is to be called in the end.
func localServices(log *slog.Logger) (s *services, close func()) {
	var opened *results.Service
	s = &services{log: log, local: true, first: tgr.RunID(time.Now().UnixMilli()) << 8}
	s.open = sync.OnceValues(func() (*results.Service, error) {
		dir := filepath.Join(envOr("TGR_DATA_DIR", defaultDataDir()), "results")
		var err error
		opened, err = results.Open(context.Background(), results.Config{Dir: envOr("TGR_RESULTS_DIR", dir), Log: log})
		return opened, err
	})
	return s, func() {
		if opened == nil {
			return
		}
		if err := opened.Close(); err != nil {
			log.Error("close the caches and artifacts", "error", err)
		}
	}
}

// Begin starts the services of one job.
func (s *services) Begin(ctx context.Context, g dispatch.Grant, l net.Listener) (dispatch.Served, error) {
	service, err := s.open()
	if err != nil {
		return dispatch.Served{}, err
	}
	id := g.Job
	if s.local {
		id += tgr.JobID(s.first)
		g.Run.ID += s.first
		g.Run.Event.Repo.ID = 0
		g.API = "" // the numbers of its runs are not those that the job is told
	}
	x, err := service.Begin(ctx, results.Job{
		Run: g.Run, ID: id, Lease: g.Lease, IDToken: g.IDToken, Environment: g.Environment, CacheMode: g.CacheMode,
		WorkflowRef: g.WorkflowRef, WorkflowSHA: g.WorkflowSHA,
		Hides: g.Hides,
		Runs:  results.Runs{API: strings.TrimSuffix(g.API, "/"), Token: g.Token, Reads: g.Reads, Own: g.Stranger},
	})
	if err != nil {
		return dispatch.Served{}, err
	}
	address := l.Addr().String()
	out := dispatch.Served{InputEnv: func(inputs map[string]string) map[string]string {
		env, err := x.EnvFor(context.WithoutCancel(ctx), address, inputs)
		if err != nil {
			s.log.Error("look for the run that a step names", "job", g.Job, "error", err)
		}
		return env
	}}
	if out.Env, err = x.Env(address); err != nil {
		x.Close()
		return dispatch.Served{}, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := x.Serve(l); err != nil {
			s.log.Warn("the services of a job ended before it", "job", g.Job, "error", err)
		}
	}()
	out.End = func() {
		if err := x.Close(); err != nil {
			s.log.Error("close the services of a job", "job", g.Job, "error", err)
		}
		<-served
	}
	return out, nil
}
