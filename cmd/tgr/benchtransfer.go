package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/results"
)

// transferBench is one call of `tgr bench transfer`.
type transferBench struct {
	out                  io.Writer
	mib, rounds, callers int
	w                    *tabwriter.Writer
	beside               string // what is said of us and act below the table
}

func newBenchTransferCmd() *cobra.Command {
	var b transferBench
	cmd := &cobra.Command{
		Use: "transfer", Short: "Measure caches and artifacts: their transfer, act beside us, and many requests at once",
		Long: `Measure how fast a cache and an artifact are saved and restored: by a client on loopback, and a cache by an action in a job,
at the job's own server and, by turns, at that of a job of act's (host mode), where act is in PATH or in Go's bin folder.
Client and server share this machine. The processor time is that of both, for a GB saved and restored: it says more than
the rates where others use the machine.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if b.mib < 1 || b.rounds < 1 || b.callers < 1 {
				return usageError{errors.New("--mib, --rounds and --callers have to be 1 at least")}
			}
			b.out = cmd.OutOrStdout()
			return ours(b.run(cmd.Context()))
		},
	}
	cmd.Flags().IntVar(&b.mib, "mib", 256, "size of the cache, MiB")
	cmd.Flags().IntVarP(&b.rounds, "rounds", "n", 5, "measurements of each kind, after one that does not count")
	cmd.Flags().IntVar(&b.callers, "callers", 1000, "requests at once")
	return cmd
}

func (b *transferBench) run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "tgr-bench-transfer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.w = tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(b.w, "%d MiB\tn\tsave, median\tp99\trestore, median\tp99\tprocessor time\n", b.mib)
	if err := b.loopback(ctx, filepath.Join(dir, "cache"), "cache v2 on loopback", (*transferClient).save, (*transferClient).restore); err != nil {
		return err
	}
	if err := b.loopback(ctx, filepath.Join(dir, "artifact"), "artifact v4 on loopback", (*transferClient).upload, (*transferClient).download); err != nil {
		return err
	}
	if err := b.inJobs(ctx, dir); err != nil {
		return err
	}
	if err := b.w.Flush(); err != nil {
		return err
	}
	fmt.Fprint(b.out, b.beside)
	return b.manyCallers(ctx, filepath.Join(dir, "callers"))
}

// transfers are what transfers of one kind took.
type transfers struct {
	saves, restores []time.Duration
	used            time.Duration // of the processors, for all transfers, also those that do not count; 0: unknown
}

// row prints medians, and the rate that one of a hundred falls short of, as megabytes (of a million bytes) a second.
func (b *transferBench) row(name string, t transfers) {
	rates := func(d []time.Duration) string {
		rate := func(q float64) float64 { return float64(b.mib<<20) / 1e6 / quantile(d, q).Seconds() }
		return fmt.Sprintf("%.0f MB/s\t%.0f", rate(0.5), rate(0.99))
	}
	used := "-"
	if t.used > 0 {
		used = fmt.Sprintf("%.1f s/GB", t.used.Seconds()/(float64(b.mib<<20)/1e9*float64(b.rounds+1)))
	}
	fmt.Fprintf(b.w, "%s\t%d\t%s\t%s\t%s\n", name, len(t.saves), rates(t.saves), rates(t.restores), used)
}

// transferClient is a job's end of the services, on loopback.
type transferClient struct {
	ctx  context.Context
	http *http.Client
	env  map[string]string
}

// openTransfer serves a job on loopback.
func openTransfer(ctx context.Context, dir string) (c *transferClient, end func() error, err error) {
	s, err := results.Open(ctx, results.Config{Dir: dir})
	if err != nil {
		return nil, nil, err
	}
	x, err := s.Begin(ctx, results.Job{ID: 1, Lease: "bench", Run: tgr.Run{ID: 1, Attempt: 1,
		Event: tgr.Event{Name: "push", Ref: "refs/heads/main", Repo: tgr.Repo{ID: 1, FullName: "bench/bench", DefaultBranch: "main"}}}})
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	l, err := guest.ListenPort(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		return nil, nil, errors.Join(err, x.Close(), s.Close())
	}
	served := make(chan error, 1)
	go func() { served <- x.Serve(l) }()
	env, err := x.Env(l.Addr().String())
	c = &transferClient{ctx: ctx, env: env, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000, ReadBufferSize: 128 << 10, WriteBufferSize: 128 << 10}}}
	end = func() error {
		c.http.CloseIdleConnections()
		return errors.Join(x.Close(), <-served, s.Close())
	}
	if err != nil {
		err = errors.Join(err, end())
	}
	return c, end, err
}

// call calls a method of a service.
func (c *transferClient) call(method string, fields map[string]any) (map[string]any, error) {
	b, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(c.ctx, "POST", c.env["ACTIONS_RESULTS_URL"]+"twirp/github.actions.results.api.v1."+method, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.env["ACTIONS_RUNTIME_TOKEN"])
	var reply map[string]any
	return reply, c.do(req, http.StatusOK, func(r io.Reader) error { return json.NewDecoder(r).Decode(&reply) })
}

func (c *transferClient) do(req *http.Request, want int, read func(io.Reader) error) error {
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s: %s", req.Method, req.URL.Path, resp.Status)
	}
	return read(resp.Body)
}

func discard(r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return err
}

func (c *transferClient) put(url string, data []byte) error {
	req, err := http.NewRequestWithContext(c.ctx, "PUT", url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("X-Ms-Blob-Type", "BlockBlob")
	return c.do(req, http.StatusCreated, discard)
}

// transferVersion is a cache's version: GitHub's clients send a hash.
const transferVersion = "0000000000000000000000000000000000000000000000000000000000000000"

// save saves a cache as GitHub's client does: in one piece up to 128 MiB, else in blocks of 64 MiB, 8 at a time.
func (c *transferClient) save(key string, data []byte) error {
	reply, err := c.call("CacheService/CreateCacheEntry", map[string]any{"key": key, "version": transferVersion})
	if err != nil {
		return err
	}
	url := fmt.Sprint(reply["signed_upload_url"])
	const block = 64 << 20
	if len(data) <= 2*block {
		err = c.put(url, data)
	} else {
		err = c.putBlocks(url, data, block, 8)
	}
	if err != nil {
		return err
	}
	_, err = c.call("CacheService/FinalizeCacheEntryUpload", map[string]any{"key": key, "version": transferVersion, "size_bytes": strconv.Itoa(len(data))})
	return err
}

func (c *transferClient) putBlocks(url string, data []byte, size, atOnce int) error {
	var list strings.Builder
	var sent sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	errs := make([]error, (len(data)+size-1)/size)
	for i := range errs {
		id := base64.URLEncoding.EncodeToString(fmt.Appendf(nil, "%012d", i))
		list.WriteString("<Latest>" + id + "</Latest>")
		slots <- struct{}{}
		sent.Go(func() {
			errs[i] = c.put(url+"&comp=block&blockid="+id, data[i*size:min(len(data), (i+1)*size)])
			<-slots
		})
	}
	sent.Wait()
	return errors.Join(append(errs, c.put(url+"&comp=blocklist", []byte("<BlockList>"+list.String()+"</BlockList>")))...)
}

// upload uploads an artifact as GitHub's client does: in blocks of 8 MiB, 5 at a time. The digest of the whole is checked.
func (c *transferClient) upload(name string, data []byte) error {
	ids := map[string]any{"workflow_run_backend_id": "1-1", "workflow_job_run_backend_id": "1", "name": name}
	with := func(more map[string]any) map[string]any {
		maps.Copy(more, ids)
		return more
	}
	reply, err := c.call("ArtifactService/CreateArtifact", with(map[string]any{"version": 7}))
	if err != nil {
		return err
	}
	if err := c.putBlocks(fmt.Sprint(reply["signed_upload_url"]), data, 8<<20, 5); err != nil {
		return err
	}
	_, err = c.call("ArtifactService/FinalizeArtifact", with(map[string]any{"size": strconv.Itoa(len(data))}))
	return err
}

// download downloads an artifact.
func (c *transferClient) download(name string) error {
	reply, err := c.call("ArtifactService/GetSignedArtifactURL",
		map[string]any{"workflow_run_backend_id": "1-1", "workflow_job_run_backend_id": "1", "name": name})
	if err != nil {
		return err
	}
	return c.fetch(fmt.Sprint(reply["signed_url"]))
}

func (c *transferClient) restore(key string) error {
	reply, err := c.call("CacheService/GetCacheEntryDownloadURL", map[string]any{"key": key, "version": transferVersion})
	if err != nil || reply["ok"] != true {
		return errors.Join(err, fmt.Errorf("restore %s: %v", key, reply))
	}
	return c.fetch(fmt.Sprint(reply["signed_download_url"]))
}

func (c *transferClient) fetch(url string) error {
	req, err := http.NewRequestWithContext(c.ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	return c.do(req, http.StatusOK, discard)
}

// loopback measures how fast bytes get there and back without a job around them.
func (b *transferBench) loopback(ctx context.Context, dir, what string, save func(c *transferClient, name string, data []byte) error,
	restore func(c *transferClient, name string) error) error {
	data := make([]byte, b.mib<<20)
	var t transfers
	unix.Sync() // what others have written
	for i := range b.rounds + 1 {
		rand.Read(data)
		saved, restored, used, err := b.round(ctx, dir, data, save, restore)
		if err != nil {
			return err
		}
		if i > 0 {
			t.saves, t.restores = append(t.saves, saved), append(t.restores, restored)
		}
		t.used += used
	}
	b.row(what, t)
	return nil
}

// round is one round of loopback, at a server of its own. What it has kept is removed, and the next round gets its memory: a
// virtual machine's is lent to it when it is first touched, which would be measured otherwise.
func (b *transferBench) round(ctx context.Context, dir string, data []byte, save func(c *transferClient, name string, data []byte) error,
	restore func(c *transferClient, name string) error) (saved, restored, used time.Duration, err error) {
	c, end, err := openTransfer(ctx, dir)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, end(), os.RemoveAll(dir)) }()
	before, began := processCPU(), time.Now()
	if err := save(c, "k", data); err != nil {
		return 0, 0, 0, err
	}
	saved = time.Since(began)
	err = restore(c, "k")
	return saved, time.Since(began) - saved, processCPU() - before, err
}

// manyCallers has many clients look a cache up at once.
func (b *transferBench) manyCallers(ctx context.Context, dir string) (err error) {
	c, end, err := openTransfer(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := c.save("shared", []byte("bytes")); err != nil {
		return err
	}
	var calls sync.WaitGroup
	took, errs := make([]time.Duration, b.callers), make([]error, b.callers)
	began := time.Now()
	for i := range b.callers {
		calls.Go(func() {
			errs[i] = c.restore("shared")
			took[i] = time.Since(began)
		})
	}
	calls.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\n%d jobs that restore a cache at once: all in %s, median %s, no errors\n", b.callers, millis(time.Since(began)), millis(quantile(took, 0.5)))
	return nil
}
