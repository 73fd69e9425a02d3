package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/joblog"
	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/results"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/vault"
	"github.com/terraphim/tgr/web"
	"github.com/terraphim/tgr/workflow"
)

func newServeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Receive webhooks, run their workflows, report to GitHub",
		Long: `Receive webhooks at POST /webhook, run the workflows of each event, and report to GitHub.

The webhook's secret comes from GITHUB_WEBHOOK_SECRET or the configuration file; tgr config shows all settings.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			log, err := newLogger(cmd.ErrOrStderr(), c)
			if err != nil {
				return err
			}
			return ours(serve(cmd.Context(), c, log))
		},
	}
	configFlags(cmd)
	return cmd
}

// newLogger makes the server's log as the configuration says.
func newLogger(w io.Writer, c *config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.get("log-level"))); err != nil {
		return nil, usagef("log-level (from %s) is %q: expected debug, info, warn or error", c.origin["log-level"], c.get("log-level"))
	}
	format, err := c.oneOf("log-format", "text", "json")
	if err != nil {
		return nil, err
	}
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

// server is everything that `tgr serve` is made of.
type server struct {
	c        *config
	log      *slog.Logger
	store    *store.Store
	vault    *vault.Vault
	logs     *joblog.Store
	metrics  *web.Metrics
	dispatch *dispatch.Dispatcher
	clock    func(context.Context) error                                    // starts what is scheduled
	schedule func(ctx context.Context, repo string) ([]tgr.Schedule, error) // lists it; nil: nothing is
	reports  *reports
	web      *web.Server
	results  *results.Service
	advice   *advisor
	learner  *learner // nil: off
	listener net.Listener
	tapes    *dispatch.Tapes        // nil: jobs end with this server
	resume   []*dispatch.Resumption // jobs of the server before
	leave    func() bool            // machines that run go on, for the next server
	watch    watchers
	url      string // where people reach it
	closers  []func() error
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, c *config, log *slog.Logger) (err error) {
	secrets, err := webhookSecrets(c)
	if err != nil {
		return err
	}
	port, err := c.number("port", 0, 65535)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(c.get("host"), fmt.Sprint(port)))
	if err != nil {
		return err
	}
	defer l.Close()
	s := &server{c: c, log: log, metrics: web.NewMetrics(version()), url: c.get("public-url"), leave: func() bool { return followed(ctx) }, listener: l}
	if s.url == "" {
		s.url = "http://" + l.Addr().String()
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx, secrets); err != nil {
		if ctx.Err() != nil { // while it waited
			return nil
		}
		return err
	}
	log.Info("listening", "url", "http://"+l.Addr().String(), "webhook", "http://"+l.Addr().String()+"/webhook", "version", version())
	return s.run(ctx, l)
}

// databaseOf says where the database is.
func databaseOf(c *config, log *slog.Logger) store.Config {
	return store.Config{Path: filepath.Join(c.get("data-dir"), "tgr.db"), URL: c.get("database-url"), Log: log}
}

// webhookSecrets are the accepted secrets; without any the server does not start.
func webhookSecrets(c *config) ([][]byte, error) {
	var secrets [][]byte
	for _, key := range []string{"webhook-secret", "webhook-secret-previous"} {
		if v := strings.TrimSpace(c.get(key)); v != "" {
			secrets = append(secrets, []byte(v))
		}
	}
	if strings.TrimSpace(c.get("webhook-secret")) == "" {
		return nil, usagef("there is no webhook secret, so anybody could start jobs: set GITHUB_WEBHOOK_SECRET to what the webhook at GitHub has (make one with: openssl rand -hex 32)")
	}
	return secrets, nil
}

// open makes the parts, in the order in which they need each other.
func (s *server) open(ctx context.Context, secrets [][]byte) error {
	dir := s.c.get("data-dir")
	if err := openDataDir(s.c, s.log); err != nil {
		return err
	}
	if err := s.lock(filepath.Join(dir, "lock")); err != nil {
		return err
	}
	var err error
	if s.reports, err = newReports(s.c, s.log, s.url); err != nil {
		return err
	}
	at := databaseOf(s.c, s.log)
	at.Reports, at.Follow, at.Changed = s.reports.of, s.follow, s.watch.changed
	standby, end := s.standBy()
	defer end()
	at.Waiting = standby
	if s.store, err = store.Open(ctx, at); err != nil {
		return err
	}
	s.closers = append(s.closers, s.store.Close)
	end()
	if err := s.openVault(ctx); err != nil {
		return err
	}
	if s.logs, err = joblog.Open(joblog.Config{Dir: filepath.Join(dir, "logs")}); err != nil {
		return err
	}
	rc, err := resultsConfig(s.c, s.log)
	if err != nil {
		return err
	}
	rc.Issuer = s.url + issuerPath
	if s.results, err = results.Open(ctx, rc); err != nil {
		return err
	}
	s.closers = append(s.closers, s.results.Close)
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	// The lock on the data folder makes sure that no other server of this name lives.
	owner := host + ":" + dir
	if s.c.get("database-url") != "" {
		owner = "server" // the only one, wherever it is: it takes back at once what the one before has left
	}
	if err := s.openTapes(ctx, owner); err != nil {
		return err
	}
	mc, err := machinesOf(s.c)
	if err != nil {
		return err
	}
	mc.keep = s.kept
	machines, err := openMachines(ctx, mc, s.log)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, machines.Close)
	if err := s.openDispatch(machines, owner); err != nil {
		return err
	}
	return s.openWeb(secrets, machines)
}

func (s *server) openDispatch(machines *machines, owner string) error {
	workers, err := s.c.number("max-concurrent-workflows", 1, 1000)
	if err != nil {
		return err
	}
	if machines.most > 0 && machines.most < workers {
		s.log.Warn("the host's memory has room for fewer machines than jobs were to run at once", "machines", machines.most, "asked", workers)
		workers = machines.most
	}
	tokens, err := openTokens(s.c, s.reports.client)
	if err != nil {
		return err
	}
	source, err := newGitSource(s.c, s.reports.auth, tokens.token, s.log)
	if err != nil {
		return err
	}
	if s.reports.client.CanReport() {
		source.ids = &identities{ask: s.reports.client.RepoID}
	}
	minutes, err := s.c.number("plan-timeout", 1, 600)
	if err != nil {
		return err
	}
	most, err := s.c.number("max-job-minutes", 1, workflow.MaxTimeout)
	if err != nil {
		return err
	}
	retention, err := s.c.number("artifact-retention", 1, 400)
	if err != nil {
		return err
	}
	forks, err := s.c.oneOf("fork-approval", dispatch.HoldFirstTime, dispatch.HoldAll, dispatch.HoldNone)
	if err != nil {
		return err
	}
	scheduling, err := s.c.oneOf("schedules", "true", "false")
	if err != nil {
		return err
	}
	s.reports.connect(s.store, s.logs, s.log)
	model, err := newLLM(s.c, s.log, 0, func(e llm.Event) {
		s.metrics.ObserveLLM(e.Task, e.Backend, e.Outcome, e.Took, e.PromptTokens, e.OutputTokens, e.Cost)
	})
	if err != nil {
		return err
	}
	s.advice = newAdvisor(s, model)
	if err := s.openLearner(); err != nil {
		return err
	}
	s.reports.why, s.reports.redact = s.advice.why, model.Redactor().Redact
	s.dispatch = dispatch.New(dispatch.Config{
		Jobs: ledger{s.store}, Runs: ledger{s.store}, Source: source, Machines: machines, Labels: machines.labels, Logs: logBook{s.logs, s.store},
		Services: &services{open: func() (*results.Service, error) { return s.results, nil }, log: s.log},
		Egress:   machines.egress, Target: true,
		Plan:  time.Duration(minutes) * time.Minute,
		Most:  time.Duration(most) * time.Minute,
		Vault: jobVault{s.vault, s.store}, Tokens: tokens.token, Hold: dispatch.HoldForks(forks),
		CheckRun: func(ctx context.Context, job tgr.JobID) int64 {
			id, err := s.store.RemoteID(ctx, github.CheckKey(job))
			if err != nil { // the job runs without it
				s.log.Warn("find a job's check run", "job", job, "error", err)
			}
			return github.CheckRunID(id)
		},
		Observe: s.observer(), Annotate: s.advice, Learn: s.learner.forDispatch(), Log: s.log, Workers: workers, Planners: max(2, workers/2),
		Owner: owner, Tapes: s.tapes, Resume: s.resume, Leave: s.leave, Revoke: tokens.revoke,
		Server: dispatch.Server{URL: s.c.get("github-server-url"), API: s.c.get("github-api-url"),
			GraphQL: strings.TrimSuffix(s.c.get("github-api-url"), "/v3") + "/graphql", Retention: retention},
	})
	s.clock = func(context.Context) error { return nil }
	if scheduling == "true" {
		s.clock, s.schedule = dispatch.Clock{Timetable: s.store, Wake: s.dispatch.Wake, Log: s.log}.Run, s.store.Schedules
	}
	return nil
}

func (s *server) openWeb(secrets [][]byte, machines *machines) error {
	perSecond, err := s.c.number("webhook-rate", 1, 1_000_000)
	if err != nil {
		return err
	}
	hook, err := github.NewWebhookHandler(github.WebhookConfig{
		Secrets: secrets, Accept: s.accept, Rate: rate.Limit(perSecond), Log: s.log, Observe: s.metrics.ObserveWebhook,
	})
	if err != nil {
		return err
	}
	s.web, err = web.New(web.Config{
		Runs: runBook{s.store}, Logs: logBook{s.logs, s.store}, Control: control{s}, Settings: keeper{s}, Metrics: s.metrics, Webhook: hook, Changed: s.watch.add, Advice: s.advice, Learned: s.learner.forWeb(),
		Schedules: s.schedule, Artifacts: s.results, Issuer: http.StripPrefix(issuerPath, s.results.Issuer()),
		Token: s.c.get("api-token"), Version: version(), Log: s.log,
		Ready: map[string]func(context.Context) error{"database": s.store.Ping, "machines": machines.Ready},
	})
	return err
}

// issuerPath is where the keys of identity tokens are published, below the server's address.
const issuerPath = "/oidc"

// standBy returns what answers requests while another server has the database: that it is not this one's turn. end gives
// the listener back, and may be called twice.
func (s *server) standBy() (begin, end func()) {
	var srv *http.Server
	ended := make(chan struct{})
	begin = func() {
		s.log.Info("another server uses the database: this one takes over when it ends")
		srv = &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				fmt.Fprintln(w, "standby")
				return
			}
			w.Header().Set("Retry-After", "5")
			http.Error(w, "standby: another server has the database", http.StatusServiceUnavailable)
		})}
		go func() {
			defer close(ended)
			srv.Serve(lent{s.listener})
		}()
	}
	return begin, func() {
		if srv != nil {
			srv.Close()
			<-ended
			s.listener.(*net.TCPListener).SetDeadline(time.Time{})
			srv = nil
		}
	}
}

// lent is a listener that outlives the server that closes it.
type lent struct{ net.Listener }

// Close ends Accept.
func (l lent) Close() error { return l.Listener.(*net.TCPListener).SetDeadline(time.Unix(1, 0)) }

// lock makes this the only server on its data folder.
func (s *server) lock(path string) error {
	f, err := lockFile(path)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("another server uses the data folder %s: %w", s.c.get("data-dir"), err)
	} else if err != nil {
		return err
	}
	s.closers = append(s.closers, f.Close)
	return nil
}

// run serves until ctx ends or a part fails; then all parts end.
func (s *server) run(ctx context.Context, l net.Listener) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for name, part := range map[string]func(context.Context) error{
		"database": s.store.Keep,
		"dispatch": s.dispatch.Run,
		"clock":    s.clock,
		"reports":  s.reports.run,
		"gauges":   s.gauges,
		"advice":   s.advice.run,
		"learner":  s.learner.run,
		"web":      func(ctx context.Context) error { return s.web.Serve(ctx, l) },
	} {
		wg.Go(func() {
			err := part(ctx)
			if err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	<-ctx.Done()
	if s.leave() {
		s.log.Info("stopping: jobs that can outlive this server go on, the others are put back into the queue; SIGINT ends all")
	} else {
		s.log.Info("stopping: jobs that run are put back into the queue")
	}
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// gauges keeps the metrics that are read rather than counted.
func (s *server) gauges(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		depth, err := s.store.QueueDepth(ctx)
		if err == nil {
			s.metrics.SetQueueDepth(depth.Queued)
			s.metrics.SetRunningJobs(depth.InProgress)
		}
		waiting, _, err := s.store.ReportsWaiting(ctx)
		if err == nil {
			s.metrics.SetReportsOutstanding(waiting)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *server) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}
