package github

import (
	"strconv"

	"github.com/terraphim/tgr"
)

// hold reports that a run waits for somebody's approval, and then what was decided: until then none of its jobs is there to
// be reported.
func (b *builder) hold() {
	a := firstOf(b.run.Approvals)
	if b.run.Hold == "" && a == nil {
		return
	}
	name := clip(b.workflow()+" / approval ("+b.run.Event.Name+")", 250)
	url := b.o.URL(b.run.ID, 0)
	s := StatusReport{State: "pending", Description: plain(b.run.Hold), TargetURL: url}
	c := CheckReport{
		Repo: b.run.Event.Repo.FullName, SHA: b.sha, Name: name, ExternalID: "hold-" + b.run.ID.String(), DetailsURL: url,
		Status: "completed", Conclusion: "action_required", Started: b.run.Created, Completed: b.run.Created,
		Title: runes(plain(b.run.Hold), 120), Summary: escape(plain(b.run.Hold)),
	}
	switch {
	case a != nil && a.Approved:
		s.State, s.Description, c.Conclusion = "success", "Approved by "+plain(a.By), "success"
	case a != nil:
		s.State, s.Description, c.Conclusion = "error", "Rejected by "+plain(a.By), "cancelled"
	case b.run.Status.Done(): // cancelled before anybody decided
		s.State, s.Description, c.Conclusion = "error", plain(b.run.Reason), "cancelled"
	}
	if a != nil {
		c.Completed, c.Title, c.Summary = a.At, runes(s.Description, 120), escape(s.Description)
	}
	b.status(name, s)
	b.add(KindCheck, "hold/"+strconv.FormatInt(int64(b.run.ID), 10), c)
}

// firstOf is what was decided of a run as a whole, nil if nothing was.
func firstOf(approvals []tgr.Approval) *tgr.Approval {
	for i := range approvals {
		if approvals[i].Environment == "" {
			return &approvals[i]
		}
	}
	return nil
}
