package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/web"
)

// contribution is a stranger's pull request to a site's repository.
type contribution struct {
	*site
	repo, fork *githubtest.Repo
	pull       *githubtest.Pull
}

// contribute opens a pull request whose workflow says what it was given.
func contribute(t *testing.T) *contribution {
	t.Helper()
	c := &contribution{site: openSite(t)}
	c.repo = c.site.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": `
on: {pull_request: {types: [opened, synchronize, edited]}}
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: 'echo "checked out $(git rev-parse HEAD), event ${{ github.sha }}, head ${{ github.event.pull_request.head.sha }}, base ${{ github.base_ref }}, content $(cat c)"'
`})
	var err error
	if c.fork, err = c.hub.Fork(c.repo, "eve/bridge"); err != nil {
		t.Fatal(err)
	}
	c.push("1")
	if c.pull, err = c.repo.OpenPull(c.fork, "topic", "main"); err != nil {
		t.Fatal(err)
	}
	c.pull.Association = "NONE"
	return c
}

// push puts another commit, and nothing else, on the fork's branch: from the second on, by force.
func (c *contribution) push(content string) {
	c.t.Helper()
	if err := c.fork.Branch("topic", c.fork.SHA("main")); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.fork.Commit("topic", "content "+content, map[string]string{"c": content}); err != nil {
		c.t.Fatal(err)
	}
	if c.pull != nil {
		c.sync()
	}
}

func (c *contribution) sync() {
	c.t.Helper()
	if err := c.pull.Sync(); err != nil {
		c.t.Fatal(err)
	}
}

// offer is a run that waits, and what it has to run when somebody approves it.
type offer struct {
	id   tgr.RunID
	sent tgr.DeliveryID
	line string
}

// arrives sends a webhook about the pull request as it is now. Its run waits.
func (c *contribution) arrives(action, content string) offer {
	c.t.Helper()
	p := offer{sent: c.send("pull_request", c.pull.Event(action))}
	p.line = fmt.Sprintf("checked out %s, event %s, head %s, base %s, content %s", c.pull.MergeSHA, c.pull.MergeSHA, c.pull.HeadSHA, c.pull.BaseRef, content)
	p.id = c.waits(p.sent).ID
	return p
}

// still fails unless the run waits, and nothing of it has run in this attempt.
func (c *contribution) still(what string, p offer) {
	c.t.Helper()
	d, err := c.client.Run(c.t.Context(), p.id, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	if d.Hold == "" || d.Status != tgr.Queued || len(web.Waiting(d.Run, d.Jobs)) == 0 {
		c.t.Errorf("%s: the run is %s, on hold for %q", what, d.Status, d.Hold)
	}
	for _, j := range d.Jobs {
		if j.Tries > 0 || j.Status != tgr.Pending {
			c.t.Errorf("%s: %s is %s after %d tries", what, j.Name, j.Status, j.Tries)
		}
	}
}

// ran waits for a run, which has to have run what it was approved for and nothing else.
func (c *contribution) ran(what string, p offer) {
	c.t.Helper()
	d := c.completed(p.sent)[0]
	if log := c.logOf(d); d.Conclusion != tgr.Success || strings.Count(log, "\nchecked out ") != 1 || !strings.Contains(log, "\n"+p.line+"\n") {
		c.t.Errorf("%s: run %s; want a line %q:\n%s", what, d.Conclusion, p.line, log)
	}
}

func (c *contribution) approve(p offer, args ...string) {
	c.t.Helper()
	c.tgr(newApproveCmd(), "", append([]string{p.id.String()}, args...)...)
}

func (c *contribution) rerun(p offer) {
	c.t.Helper()
	c.tgr(newRunsCmd(), "", "rerun", p.id.String())
}

// An approval is for the commit that somebody has looked at: not for what is pushed after it, and not for another base.
func TestServeForkIsPushedTo(t *testing.T) {
	c := contribute(t)
	first := c.arrives("opened", "1")
	c.push("2")
	second := c.arrives("synchronize", "2")
	c.approve(first)
	c.ran("approved after it was pushed to", first)
	c.still("pushed before the approval", second)
	c.approve(second)
	c.ran("approved as well", second)
	c.push("3")
	third := c.arrives("synchronize", "3")

	if err := c.repo.Branch("release", c.repo.SHA("main")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.repo.Commit("release", "release", map[string]string{"r": "1"}); err != nil {
		t.Fatal(err)
	}
	c.pull.BaseRef = "release"
	c.sync()
	fourth := c.arrives("edited", "3")
	c.approve(third)
	c.ran("approved after it got another base", third)
	c.still("with another base", fourth)
	c.approve(fourth)
	c.ran("approved for the other base", fourth)
}

// What was approved may be run again as it was; what was rejected waits again.
func TestServeForkRunsAgain(t *testing.T) {
	c := contribute(t)
	good := c.arrives("opened", "1")
	c.approve(good)
	c.ran("approved", good)
	c.push("2")
	bad := c.arrives("synchronize", "2")
	c.approve(bad, "--reject")
	if d := c.completed(bad.sent)[0]; d.Conclusion != tgr.Cancelled || c.logOf(d) != "" {
		t.Errorf("rejected: %s, and its log is %q", d.Conclusion, c.logOf(d))
	}
	c.rerun(good)
	c.ran("approved, and again", good)
	for range 2 {
		c.rerun(bad)
		c.still("rejected, and again", bad)
		c.approve(bad, "--reject")
		if d := c.completed(bad.sent)[0]; d.Conclusion != tgr.Cancelled || c.logOf(d) != "" {
			t.Errorf("rejected once more: %s, and its log is %q", d.Conclusion, c.logOf(d))
		}
	}
	c.rerun(bad)
	c.approve(bad)
	c.ran("approved after all", bad)
}
