-- How much one partner may ask of the claim service, so that its flood slows nobody else.

ALTER TABLE partner ADD claims_per_s_max integer CHECK (claims_per_s_max > 0);
COMMENT ON COLUMN partner.claims_per_s_max IS 'Claims a second that the partner may send, over all workers; no limit when null.';

GRANT UPDATE (claims_per_s_max) ON partner TO hanquan_operator;
