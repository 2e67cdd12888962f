import sys; sys.path.insert(0,'/work/main')
from collections import Counter
import tests.integration.test_money_model as m
C=Counter()
r,f=m.Model.redeem,m.Model.refund
def rr(self,*a):
    o=r(self,*a); C['redeem '+o]+=1; return o
def ff(self,*a):
    o=f(self,*a); C['refund '+o]+=1; return o
m.Model.redeem=rr; m.Model.refund=ff
import atexit; atexit.register(lambda: print(C, file=sys.stderr))
o=m.Money._follow
def fo(self,a,outs):
    for x in outs: C['batch '+x]+=1
    return o(self,a,outs)
m.Money._follow=fo
for n in ('drain','pay_out','expire','close_day','overdraw','rewrite'):
    pass
import pytest
class P: pass
from tests.integration.test_money_model import *
